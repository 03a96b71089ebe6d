"""Making trained models smaller: parts removed by what they matter, values quantised."""
