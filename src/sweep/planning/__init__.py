"""Planning: turns points into engine groups with their inputs read and checked."""
