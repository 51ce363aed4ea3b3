"""Photos changed so that models learn less from them: DLADiff, Anti-Diffusion and what they are compared with."""
