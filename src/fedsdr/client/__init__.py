"""4. A client's round: load the broadcast, train, pack the reply."""
