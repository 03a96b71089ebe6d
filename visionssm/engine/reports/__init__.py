"""What a run tells: progress, tables and pictures."""
