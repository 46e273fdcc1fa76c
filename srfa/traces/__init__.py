"""From raw traces to tables: one parser a stream, and the gates on a job's data."""
