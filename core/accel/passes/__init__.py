"""Graph to plan: simplify, fuse, lay out memory."""
