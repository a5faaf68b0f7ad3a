"""What a kept run is good for: talking to its policies, files of answers, taking them away, doing it all again."""
