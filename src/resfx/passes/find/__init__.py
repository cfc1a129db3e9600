"""What a graph adds: sites, skips, streams, and what lies in their branches."""
