"""Load on a running service: a Locust test with a realistic mix, and a small closed-loop latency tool."""
