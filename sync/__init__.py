"""What devices and hubs say to each other, and why either may believe it.

Owns: topics and messages, signing and sealing, trust (TUF), blob transfer, the durable outbox, the
audit log, MQTT. Refuses: deciding what a device should run.
"""
