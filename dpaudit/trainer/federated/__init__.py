"""Federated training: participants keep their records and send updates to a server."""
