"""Does it help? The plain model and every method, trained side by side from one start in one order of data."""
