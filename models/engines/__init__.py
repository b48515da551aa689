"""Engine Protocols and the adapters that implement them. Native libraries load inside adapters only."""
