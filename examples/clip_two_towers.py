"""CLIP on handwritten digits with several processes: two towers, an image and a text of what it shows.

    torchrun --nproc-per-node 2 examples/clip_two_towers.py
    python examples/clip_two_towers.py                            # one process

Each image of a batch is compared with the texts of all processes, and each text with their images. Held-out images are
then named by the text that is nearest, of ten texts with a digit each: "zero-shot" classification. It needs
scikit-learn.
"""

import argparse
import math
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("the digit {}", "a handwritten {}", "somebody wrote {} here", "this is a {}")
TEXTS = [template.format(name) for template in TEMPLATES for name in NAMES]
WORDS = {word: i for i, word in enumerate(sorted({word for text in TEXTS for word in text.split()}))}


def start() -> tuple[int, int, torch.device]:
    """This process's rank, how many processes there are, and its device: a GPU of its own, or else the CPU."""
    rank, world, local, here = (
        int(os.environ.get(name, other))
        for name, other in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    gpus = torch.cuda.device_count() >= here
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if gpus else "gloo")
    return rank, world, device


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128, help="pairs of all processes together (%(default)s)")
    parser.add_argument("--mode", choices=("gather", "ring"), default="gather", help="how rows of others come")
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    return parser.parse_args()


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images / 16, digits, test_size=1 / 3, stratify=digits, random_state=0)
    x, x_held_out = (torch.tensor(part, dtype=torch.float32, device=device) for part in split[:2])
    labels, labels_held_out = (torch.tensor(part, device=device) for part in split[2:])
    bags = bags_of_words().to(device)

    torch.manual_seed(0)  # the same parameters and the same batches in every process
    towers = TwoTowers().to(device)
    model = DistributedDataParallel(towers) if world > 1 else towers
    loss_function = GroupLoss(fusedloss.ClipLoss(), mode=args.mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    for epoch in range(3 if args.quick else args.epochs):
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

    with torch.no_grad():
        image, text, _ = towers(x_held_out, bags[: len(NAMES)])
        accuracy = (image @ text.T).argmax(1).eq(labels_held_out).float().mean().item()
    if rank == 0:
        print(f"Accuracy of naming {len(x_held_out)} digits held out: {accuracy:.3f}")


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
