"""The router: the monitoring signal, the expected gain of each kind of update, and the strategies."""
