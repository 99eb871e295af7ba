"""The noising process: schedules, prediction targets, weights, timestep samplers, DDIM."""
