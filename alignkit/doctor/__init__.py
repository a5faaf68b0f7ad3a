"""What this machine offers to alignkit, and what to mend: `alignkit doctor`."""
