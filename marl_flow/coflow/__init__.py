"""CoFlow (arXiv 2605.01457), offline multi-agent control by few-step flow plans. Where to read what:

config     settings, with the presets `release`, `paper` and `compact`
network    the trajectory network (U-Net or tokens, coordinated velocity attention), inverse dynamics, Polyak average
model      the velocity field u with its condition and guidance, next to the inverse dynamics

From a batch to a loss:            inputs     encode the windows, draw a FlowSample (agents shown, times, noise)
                                   loss       the equations: flow loss and inverse-dynamics loss
                                   algorithm  `CoFlow.losses` adds the two up, `CoFlow.update` takes the gradient step
From an observation to an action:  policy     encode the frames, sample a plan, inverse dynamics on its next frame
                                   sampler    the k Euler steps from noise to the plan

released_weights                   reads the published checkpoints into the `release` preset
"""
