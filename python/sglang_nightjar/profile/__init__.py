"""What this machine was seen to do: servers note it while they run, `nightjar profile` makes them see it all."""
