"""What tests and benchmarks share: op cases, the one tolerance rule, backends that can run here."""
