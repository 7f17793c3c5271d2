"""What the page of the molecules app does that no other page can."""
