"""From finished points to what the user sees, on threads beside the engine: scored, archived, published, reported."""
