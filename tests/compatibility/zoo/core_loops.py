"""Ways to train that PyTorch itself has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.core_modules import Bags, perceptron
from zoo.entry import STEPS, Case, Entry, case, plain, squares


def step(case: Case, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> float:
    """One plain step."""
    case.optimizer.zero_grad()
    loss = case.loss(case.model)
    scale(loss).backward()
    case.optimizer.step()
    return loss.item()


def autocast() -> Case:
    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = case.loss(case.model)
            loss.backward()
            case.optimizer.step()
            losses.append(loss.item())
        return losses

    return case(perceptron(), squares(4, 8), train)


def scaled(initial: float) -> Callable[[], Case]:
    def train(case: Case) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=initial)
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = case.loss(case.model).float() * 64
            scaler.scale(loss).backward()
            scaler.unscale_(case.optimizer)
            nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
            scaler.step(case.optimizer)
            scaler.update(2.0**10)
            losses += [loss.item(), scaler.get_scale()]
        return losses

    return lambda: case(perceptron(), squares(4, 8), train)


def accumulated() -> Case:
    def train(case: Case) -> list[float]:
        losses = []
        for micro in range(2 * STEPS):
            loss = case.loss(case.model) / 2
            loss.backward()
            losses.append(loss.item())
            if micro % 2:
                case.optimizer.step()
                case.optimizer.zero_grad(set_to_none=False)
        return losses

    return case(perceptron(), squares(4, 8), train)


def closure() -> Case:
    def train(case: Case) -> list[float]:
        x = torch.randn(4, 8)

        def evaluate() -> Tensor:
            case.optimizer.zero_grad()
            loss = case.model(x).square().mean()
            loss.backward()
            return loss

        return [case.optimizer.step(evaluate).item() for _ in range(STEPS)]

    model = perceptron()
    return case(model, squares(4, 8), train, optimizer=torch.optim.LBFGS(model.parameters(), max_iter=3))


def gradient_penalty() -> Case:
    def loss(model: nn.Module) -> Tensor:
        x = torch.randn(4, 8, requires_grad=True)
        out = model(x).sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        return out.square() + (slope.norm(dim=1) - 1).square().mean()

    return case(perceptron(), loss)


def retained() -> Case:
    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = case.loss(case.model)
            loss.backward(retain_graph=True)
            (2 * loss).backward()
            case.optimizer.step()
            losses.append(loss.item())
        return losses

    return case(perceptron(), squares(4, 8), train)


def averaged() -> Case:
    def train(case: Case) -> list[float]:
        averages = [
            torch.optim.swa_utils.AveragedModel(case.model),
            torch.optim.swa_utils.AveragedModel(
                case.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
            ),
        ]
        losses = []
        for _ in range(STEPS):
            losses.append(step(case))
            for average in averages:
                average.update_parameters(case.model)
                losses.append(case.loss(average).item())
        return losses

    return case(perceptron(), squares(4, 8), train)


def copied_each_step() -> Case:
    def train(case: Case) -> list[float]:
        losses, best = [], None
        for _ in range(STEPS):
            losses.append(step(case))
            best = copy.deepcopy(case.model)
            losses.append(case.loss(best).item())
        case.model.load_state_dict(best.state_dict())
        return losses

    return case(perceptron(), squares(4, 8), train)


def alternating() -> Case:
    """Rollouts in eval mode without gradients, then several steps on them."""

    def train(case: Case) -> list[float]:
        numbers = []
        for _ in range(STEPS):
            case.model.eval()
            with torch.no_grad():
                states = torch.randn(6, 8)
                actions = torch.distributions.Categorical(logits=case.model(states)).sample()
            case.model.train()
            for _ in range(2):
                case.optimizer.zero_grad()
                chosen = torch.log_softmax(case.model(states), -1).gather(1, actions[:, None])
                loss = -(chosen * torch.randn(6, 1)).mean()
                loss.backward()
                case.optimizer.step()
                numbers.append(loss.item())
            with torch.inference_mode():
                numbers.append(case.model(states).sum().item())
        return numbers

    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4))
    return case(model, squares(4, 8), train)


class Adversaries(nn.Module):
    """A generator and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(3, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.discriminator(self.generator(noise))


def adversarial(given: Callable[[list[torch.optim.Optimizer]], Any]) -> Callable[[], Case]:
    def build() -> Case:
        model = Adversaries()
        optimizers = [
            torch.optim.Adam(model.generator.parameters()),
            torch.optim.SGD(model.discriminator.parameters(), 0.1),
        ]

        def train(_case: Case) -> list[float]:
            numbers = []
            for _ in range(STEPS):
                optimizers[1].zero_grad()
                fake = model.generator(torch.randn(4, 3)).detach()
                real = functional.softplus(-model.discriminator(torch.randn(4, 8))).mean()
                loss = real + functional.softplus(model.discriminator(fake)).mean()
                loss.backward()
                optimizers[1].step()
                optimizers[0].zero_grad()
                fooled = functional.softplus(-model(torch.randn(4, 3))).mean()
                fooled.backward()
                optimizers[0].step()
                numbers += [loss.item(), fooled.item()]
            return numbers

        return case(model, squares(4, 3), train, optimizer=given(optimizers))

    return build


def one_of_two() -> Case:
    """Only some of the parameters are in the optimizer that is watched."""
    model = perceptron()
    return case(model, squares(4, 8), optimizer=torch.optim.SGD(model[2].parameters(), 0.1))


def no_optimizer() -> Case:
    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            loss = case.loss(case.model)
            loss.backward()
            with torch.no_grad():
                for parameter in case.model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
            losses.append(loss.item())
        return losses

    return Case(perceptron(), squares(4, 8), None, train)


def optimizer_of(
    make: Callable[..., torch.optim.Optimizer], build: Callable[[], nn.Module] = perceptron
) -> Callable[[], Case]:
    def built() -> Case:
        model = build()
        return case(model, squares(4, 8), optimizer=make(model.parameters()))

    return built


def sparse_adam() -> Case:
    model = Bags(sparse=True)
    optimizers = [
        torch.optim.SparseAdam([*model.words.parameters(), *model.bags.parameters()]),
        torch.optim.Adam(model.head.parameters()),
    ]

    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = case.loss(case.model)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
        return losses

    return case(model, lambda m: m(torch.randint(0, 20, (4, 5))).square().mean(), train, optimizer=optimizers)


def in_backward() -> Case:
    """Each parameter is updated as soon as its gradient is there, and has none afterwards."""

    def train(case: Case) -> list[float]:
        optimizers = {p: torch.optim.SGD([p], 0.1) for p in case.model.parameters()}

        def update(parameter: Tensor) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        handles = [p.register_post_accumulate_grad_hook(update) for p in case.model.parameters()]
        losses = []
        for _ in range(STEPS):
            loss = case.loss(case.model)
            loss.backward()
            losses.append(loss.item())
        for handle in handles:
            handle.remove()
        for parameter in case.model.parameters():
            parameter._post_accumulate_grad_hooks = None
        return losses

    return Case(perceptron(), squares(4, 8), None, train)


def scheduled() -> Case:
    def train(case: Case) -> list[float]:
        schedule = torch.optim.lr_scheduler.OneCycleLR(case.optimizer, 0.1, total_steps=STEPS)
        numbers = []
        for _ in range(STEPS):
            numbers.append(step(case))
            schedule.step()
            numbers.append(schedule.get_last_lr()[0])
        return numbers

    return case(perceptron(), squares(4, 8), train)


def raises_midway() -> Case:
    """A step that fails in the forward pass and is skipped by the loop."""

    def train(case: Case) -> list[float]:
        numbers = [step(case)]
        try:
            case.model(torch.randn(4, 7))
        except RuntimeError:
            numbers.append(0.5)
        return [*numbers, step(case)]

    return case(perceptron(), squares(4, 8), train)


def truncated() -> Case:
    """Hidden states are handed from one chunk of a sequence to the next."""
    model = nn.LSTM(4, 6, batch_first=True)

    def train(case: Case) -> list[float]:
        state, losses = None, []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            out, state = case.model(torch.randn(2, 5, 4), state)
            loss = out.square().mean()
            loss.backward()
            case.optimizer.step()
            state = tuple(part.detach() for part in state)
            losses.append(loss.item())
        return losses

    return case(model, lambda m: m(torch.randn(2, 5, 4))[0].square().mean(), train)


def inner_loop() -> Case:
    """MAML: the loss after a step on functional copies of the weights."""

    def loss(model: nn.Module) -> Tensor:
        weights = dict(model.named_parameters())
        x = torch.randn(4, 8)
        value = torch.func.functional_call(model, weights, (x,)).square().mean()
        slopes = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        fast = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        return torch.func.functional_call(model, fast, (torch.randn(4, 8),)).square().mean()

    return case(perceptron(), loss)


def grown() -> Case:
    """A layer is added, and its parameters join the optimizer, while the block runs."""

    def train(case: Case) -> list[float]:
        numbers = [step(case)]
        case.model.append(nn.Linear(4, 4))
        case.optimizer.add_param_group({"params": case.model[-1].parameters()})
        return [*numbers, step(case)]

    return case(perceptron(), squares(4, 8), train)


def replaced() -> Case:
    """Weights get other memory while the block runs: resized embeddings, `to`, `.data =`."""

    def train(case: Case) -> list[float]:
        numbers = [step(case)]
        with torch.no_grad():
            case.model[0].weight.data = case.model[0].weight.data.clone()
        case.model.double()
        case.model.float()
        return [*numbers, step(case)]

    return case(perceptron(), squares(4, 8), train)


def threads() -> Case:
    """Two threads run the forward pass of one model, one after the other; the backward pass is in a third."""
    from concurrent.futures import ThreadPoolExecutor

    def train(case: Case) -> list[float]:
        losses = []
        with ThreadPoolExecutor(1) as forward, ThreadPoolExecutor(1) as backward:
            for _ in range(STEPS):
                case.optimizer.zero_grad()
                loss = forward.submit(case.loss, case.model).result()
                backward.submit(loss.backward).result()
                case.optimizer.step()
                losses.append(loss.item())
        return losses

    return case(perceptron(), squares(4, 8), train)


def anomaly() -> Case:
    def train(case: Case) -> list[float]:
        with torch.autograd.detect_anomaly(check_nan=True):
            return plain(case)

    return case(perceptron(), squares(4, 8), train)


def offloaded() -> Case:
    """Saved tensors are packed and unpacked by hooks."""

    def train(case: Case) -> list[float]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return plain(case)

    return case(perceptron(), squares(4, 8), train)


def own_hooks() -> Case:
    """The user's own hooks change an output and a gradient."""

    def train(case: Case) -> list[float]:
        handles = [
            case.model[0].register_forward_hook(lambda _m, _i, out: out * 1.5),
            case.model[2].register_full_backward_hook(lambda _m, gi, _go: tuple(g * 0.5 for g in gi)),
            case.model[4].register_forward_pre_hook(lambda _m, args: (args[0] + 1,)),
        ]
        losses = plain(case)
        for handle in handles:
            handle.remove()
        return losses

    return case(perceptron(), squares(4, 8), train)


def fused_scaled() -> Case:
    """A fused optimizer unscales by itself, and skips by itself."""

    def train(case: Case) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = case.loss(case.model) * 64
            scaler.scale(loss).backward()
            scaler.step(case.optimizer)
            scaler.update(2.0**10)
            losses.append(loss.item())
        return losses

    model = perceptron()
    return case(model, squares(4, 8), train, optimizer=torch.optim.AdamW(model.parameters(), fused=True))


def some_gradients() -> Case:
    """`backward(inputs=...)` and `autograd.grad`, which leave other gradients alone."""

    def train(case: Case) -> list[float]:
        numbers = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = case.loss(case.model)
            loss.backward(inputs=[case.model[4].weight, case.model[0].bias], retain_graph=True)
            (slope,) = torch.autograd.grad(loss, [case.model[2].weight])
            case.optimizer.step()
            numbers += [loss.item(), slope.sum().item()]
        return numbers

    return case(perceptron(), squares(4, 8), train)


def on_cpu() -> Case:
    def train(case: Case) -> list[float]:
        with torch.autograd.graph.save_on_cpu():
            return plain(case)

    return case(perceptron(), squares(4, 8), train)


def watched_within() -> Case:
    """A block within the block, over a part of the model."""
    from depthgauge import probe

    def train(case: Case) -> list[float]:
        numbers = [step(case)]
        with probe.track(case.model[2], optimizer=case.optimizer) as inner:
            numbers.append(step(case))
        return [*numbers, step(case), float(len(inner))]

    return case(perceptron(), squares(4, 8), train)


def saved_and_loaded() -> Case:
    """Model and optimizer are copied, saved and loaded in the middle."""
    import io

    def train(case: Case) -> list[float]:
        numbers = [step(case)]
        file = io.BytesIO()
        torch.save(
            {"model": case.model.state_dict(), "optimizer": case.optimizer.state_dict(), "all": case.optimizer}, file
        )
        copy.deepcopy((case.model, case.optimizer))
        numbers.append(step(case))
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        case.model.load_state_dict(saved["model"])
        case.optimizer.load_state_dict(saved["optimizer"])
        return [*numbers, step(case)]

    model = perceptron()
    return case(model, squares(4, 8), train, optimizer=torch.optim.Adam(model.parameters(), 0.01))


def without_inputs() -> Case:
    """Weights that change outside of a step: decay by hand, reset of a layer, noise."""

    def train(case: Case) -> list[float]:
        numbers = []
        for _ in range(STEPS):
            numbers.append(step(case))
            with torch.no_grad():
                torch._foreach_mul_(list(case.model.parameters()), 0.99)
                case.model[2].reset_parameters()
                case.model[0].weight.add_(torch.randn(16, 8), alpha=0.01)
        return numbers

    return case(perceptron(), squares(4, 8), train)


LOOPS = (
    Entry("autocast to bfloat16", autocast, "loop"),
    Entry("autocast, `GradScaler`, clipping", scaled(2.0**10), "loop"),
    Entry("`GradScaler` that skips steps", scaled(2.0**127), "loop"),
    Entry("gradient accumulation", accumulated, "loop"),
    Entry("a closure (LBFGS)", closure, "loop"),
    Entry("gradient penalty, second derivatives", gradient_penalty, "loop"),
    Entry("two backward passes through one graph", retained, "loop"),
    Entry("`AveragedModel`, plain and EMA", averaged, "loop"),
    Entry("the best model is copied and restored", copied_each_step, "loop"),
    Entry("rollouts in eval mode between steps", alternating, "loop"),
    Entry("GAN, a list of two optimizers", adversarial(list), "loop"),
    Entry("GAN, the generator's optimizer", adversarial(lambda both: both[0]), "loop"),
    Entry("GAN, the discriminator's optimizer", adversarial(lambda both: both[1]), "loop"),
    Entry("an optimizer of some parameters only", one_of_two, "loop"),
    Entry("no optimizer: updates by hand", no_optimizer, "loop"),
    Entry("AdamW, fused", optimizer_of(lambda p: torch.optim.AdamW(p, fused=True)), "loop"),
    Entry("Adam, foreach, AMSGrad", optimizer_of(lambda p: torch.optim.Adam(p, foreach=True, amsgrad=True)), "loop"),
    Entry("Muon", optimizer_of(lambda p: torch.optim.Muon(q for q in p if q.dim() == 2)), "loop"),
    Entry("SparseAdam and Adam, a list", sparse_adam, "loop"),
    Entry("updates inside of the backward pass", in_backward, "loop"),
    Entry("a learning-rate schedule", scheduled, "loop"),
    Entry("a step that raises and is skipped", raises_midway, "loop"),
    Entry("truncated backpropagation through time", truncated, "loop"),
    Entry("MAML, an inner step on functional weights", inner_loop, "loop"),
    Entry(
        "a layer is added during training",
        grown,
        "loop",
        expected="partly",
        why="what is watched is what was there when the block began",
    ),
    Entry("weights that get other memory", replaced, "loop"),
    Entry("forward and backward passes in other threads", threads, "loop"),
    Entry("anomaly detection", anomaly, "loop"),
    Entry("saved-tensor hooks", offloaded, "loop"),
    Entry("the user's own hooks", own_hooks, "loop"),
    Entry("`GradScaler` with a fused optimizer", fused_scaled, "loop"),
    Entry("`backward(inputs=...)` and `autograd.grad`", some_gradients, "loop"),
    Entry("saved tensors offloaded", on_cpu, "loop"),
    Entry("a block within the block", watched_within, "loop"),
    Entry("model and optimizer saved and loaded", saved_and_loaded, "loop"),
    Entry("weights changed outside of steps", without_inputs, "loop"),
)
