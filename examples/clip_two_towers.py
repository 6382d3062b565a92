"""CLIP on handwritten digits with several processes: two towers, an image and a text of what it shows.

    torchrun --nproc-per-node 2 examples/clip_two_towers.py
    python examples/clip_two_towers.py                            # one process

Each image of a batch is compared with the texts of all processes, and each text with their images. Held-out images are
then named by the text that is nearest, of ten texts with a digit each: "zero-shot" classification. It needs
scikit-learn and rich: pip install "fusedloss[examples]".
"""

import argparse
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import digits, parser, print_table, progress, start
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("the digit {}", "a handwritten {}", "somebody wrote {} here", "this is a {}")
TEXTS = [template.format(name) for template in TEMPLATES for name in NAMES]
WORDS = {word: i for i, word in enumerate(sorted({word for text in TEXTS for word in text.split()}))}


class TwoTowers(nn.Module):
    """Images [N, 64] and bags of words [N, words] -> embeddings [N, 32] of both, and the scale of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32))
        self.text = nn.Linear(len(WORDS), 32)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # its logarithm is learned

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.image(images)), F.normalize(self.text(texts)), self.logit_scale.exp()


def bags_of_words() -> Tensor:
    """Of every text, which words it has. [texts, words]"""
    bags = torch.zeros(len(TEXTS), len(WORDS))
    for bag, text in zip(bags, TEXTS, strict=True):
        bag[[WORDS[word] for word in text.split()]] = 1.0
    return bags


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=20, quick=3)
    found.add_argument("--batch", type=int, default=128, help="pairs of all processes together (%(default)s)")
    found.add_argument("--mode", choices=("gather", "ring"), default="gather", help="how rows of others come")
    return found.parse_args()


@torch.no_grad()
def accuracy(towers: TwoTowers, images: Tensor, shown: Tensor, bags: Tensor) -> dict[str, float]:
    """The share of images whose nearest text, of the first template's, names what they show."""
    image, text, _ = towers(images, bags[: len(NAMES)])
    return {"accuracy": (image @ text.T).argmax(1).eq(shown).float().mean().item()}


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    x, labels, x_held_out, labels_held_out = digits(device)
    bags = bags_of_words().to(device)

    torch.manual_seed(args.seed)  # the same parameters and the same batches in every process
    towers = TwoTowers().to(device)
    found = {"untrained network": accuracy(towers, x_held_out, labels_held_out, bags)}
    model = DistributedDataParallel(towers) if world > 1 else towers
    loss_function = GroupLoss(fusedloss.ClipLoss(), mode=args.mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    for epoch in progress(range(args.epochs)):
        for batch in torch.randperm(len(x)).split(args.batch):
            text = torch.randint(len(TEMPLATES), batch.shape)  # of every image of the batch; a text says it in some way
            own = batch.tensor_split(world)[rank].to(device)
            of_own = text.tensor_split(world)[rank].to(device) * len(NAMES) + labels[own]
            image, text, scale = model(x[own], bags[of_own])
            # A batch has many images of a digit: ids says that the text of one is no negative of another.
            loss = loss_function(image, text, scale, ids=labels[own])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                towers.logit_scale.clamp_(0.0, math.log(100.0))
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}, scale {towers.logit_scale.exp().item():.1f}", flush=True)

    found["trained network"] = accuracy(towers, x_held_out, labels_held_out, bags)
    if rank == 0:
        print(f"{len(x_held_out)} held-out digits, each named by the nearest of ten texts:")
        print_table(found)


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
