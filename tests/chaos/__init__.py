"""Everything breaks at random, and every client still gets the exact text or an honest error."""
