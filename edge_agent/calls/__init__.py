"""One call from question to answer: where it may run, what is recorded, what its receipt says."""
