"""The two trainings, of the autoencoder and of the denoiser: settings, latent cache, loop, run folder,
processes.
"""
