"""What this machine offers, and what to mend."""
