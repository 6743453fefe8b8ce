"""Run one helper process beside the server: started, watched, started again when it ends, and never left behind."""
