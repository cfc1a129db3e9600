"""One self-contained HTML page of a report: nothing in it is loaded from elsewhere."""
