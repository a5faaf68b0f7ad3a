"""Plans: the stages of a recipe, wired by the kinds they take and make, before anything heavy is imported."""
