"""What the file says: TOML with line numbers, settings, fingerprints."""
