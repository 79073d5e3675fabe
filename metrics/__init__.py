"""How good a run is: each number a pure function, with its definition and source."""
