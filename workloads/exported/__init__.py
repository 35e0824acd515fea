"""``program.run``: a client's own graph, which travels with the job and is run operator by operator."""
