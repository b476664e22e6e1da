"""The reference that the shared-prefix learner is held to: one plain forward per prompt and branch, no
padding.
"""

import torch
from torch import nn

from sluice.catalog.decoding import PLAIN_POLICY
from sluice.learner.scoring.shared_prefix import BranchScores


class PerSequenceScorer(nn.Module):
    """What `BranchScorer` computes, the slow way and in other words."""

    def __init__(self, model, value_head=None):
        super().__init__()
        self.model, self.value_head = model, value_head

    def forward(self, history_BT, history_lengths_B, branches_BSL, allowed_BSLV=None, decoding=PLAIN_POLICY):
        prompts, branches, levels = branches_BSL.shape
        log_probs, targets, entropies, values = [], [], [], []
        for prompt in range(prompts):
            history = history_BT[prompt, : history_lengths_B[prompt]]
            for branch in range(branches):
                tokens, places = branches_BSL[prompt, branch], torch.arange(levels)
                row = torch.cat([history, tokens])[None]
                output = self.model(row, use_cache=False, output_hidden_states=True)
                free = output.logits[0, len(history) - 1 : -1]
                logits = free / decoding.temperature
                if allowed_BSLV is not None:
                    logits = logits.masked_fill(~allowed_BSLV[prompt, branch], -torch.inf)
                log_p = torch.log_softmax(logits, dim=-1)
                log_probs.append(log_p[places, tokens])
                entropies.append(-(log_p.exp() * log_p).nan_to_num(0.0).sum(-1).detach())
                if branch == 0:
                    targets.append(torch.log_softmax(free, dim=-1)[places, tokens])
                if self.value_head is not None:
                    values.append(self.value_head(output.hidden_states[-1][0, len(history) - 1 : -1])[:, 0])
        shape = (prompts, branches, levels)
        return BranchScores(
            torch.stack(log_probs).view(shape),
            torch.stack(targets),
            torch.stack(entropies).view(shape),
            torch.stack(values).view(shape) if values else None,
        )
