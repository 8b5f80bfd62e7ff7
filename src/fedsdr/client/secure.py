"""The client side of a secure sum (`messages.secure_sum`): what it publishes, checks and refuses.

The client does not trust the server. Each step checks the message against the client's saved state, is saved
before its answer is sent, and is answered only once: two answers to one step could differ by what a mask
hides.

    begin      draws secrets; publishes two signed keys
    shares     checks the list of the round; encrypts for each client a share of the client's own secrets
    masked     y_k, masked with the clients whose shares arrived
    confirm    signs whose vectors are in the sum: only one list per round of a run, with one set of
               weights, broadcast and settings. Two sums that differ in these could reveal one change
    unmask     sends shares of the seed of each of these clients, and of the key of each other client
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA384

from fedsdr.errors import Diverged, UserError
from fedsdr.messages import secure_sum
from fedsdr.messages.privacy import clip
from fedsdr.messages.secure_sum import LARGEST, LEAST_CLIENTS, SHARE_BYTES, Card, Float64, Secrets, Words
from fedsdr.storage import SECRET, read_json, write_file, write_json

SESSION = "session.json"
STEPS = ("roll", "sealed", "survivors", "unmasked")
"""Keys saved by the steps after `begin`, in order; the last step saves nothing."""


@dataclass(frozen=True)
class Peers:
    """The peers of a deployed client in secure sums; the server never holds these keys."""

    key: Path
    """Private key of this node."""
    folder: Path
    """Public keys of the nodes of other clients, <client>.pub."""
    min_clients: int
    """Minimum number of clients in a sum."""

    def sign(self, text: bytes) -> bytes:
        """Sign as this client."""
        key = serialization.load_ssh_private_key(self.key.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        return key.sign(text, ECDSA(SHA384()))

    def has_signed(self, client: str, signature: bytes, text: bytes) -> bool:
        """Whether a signature was made by the given other client."""
        known = {path.stem: path for path in self.folder.glob("*.pub")}
        if client not in known:
            raise UserError(f"{self.folder} contains no key of client {client} (`fedsdr deploy peers`)")
        return secure_sum.has_signed(known[client].read_bytes(), signature, text)


def begin(
    folder: Path,
    peers: Peers | None,
    server_round: int,
    about: bytes,
    change: Float64,
    num_examples: int,
    most: float | None,
) -> Card:
    """Save a change to be summed, with new secrets; return the client's public keys and signature.

    Args:
        folder: Folder for secure sums, in the client's folder.
        peers: Keys; None in a simulation, where nothing is signed.
        server_round: The round.
        about: `secure_sum.round_digest`.
        change: The trained change (num_values,).
        num_examples: n_k.
        most: Norm to clip the change to, with equal weights; None: no clipping, weight n_k / n.

    Raises:
        Diverged: A change is too large to be encoded.
    """
    if most is None and (largest := float(np.abs(change).max(initial=0))) > LARGEST:
        raise Diverged(f"training diverged: a parameter of the shared adapter changed by {largest:.3g}")
    own = secure_sum.draw_secrets()
    card = Card(secure_sum.public(own.mask), secure_sum.public(own.seal), num_examples, b"")
    if peers:
        card = replace(card, signature=peers.sign(card.signed(about)))
    for old in folder.glob("*.npy"):
        old.unlink()
    # Under a unique name: no other session may mask it.
    data = io.BytesIO()
    np.save(data, change)
    write_file(folder / f"{card.mask.hex()}.npy", data.getvalue(), SECRET)
    saved: dict[str, Any] = {
        "round": server_round,
        "most": most,
        "about": about.hex(),
        "card": secure_sum.write_roll({"": card}, 0),
    }
    saved |= {"secrets": [secret.hex() for secret in astuple(own)]}
    write_file(folder / SESSION, json.dumps(saved), SECRET)
    return card


class Session:
    """One round of a client, from the file that `begin` wrote."""

    def __init__(self, folder: Path, client: str, peers: Peers | None, server_round: int) -> None:
        """Read the saved session; `folder` and `peers` are as in `begin`.

        Raises:
            UserError: The client has not begun a sum of this round.
        """
        self.folder, self.client, self.peers, self.round = folder, client, peers, server_round
        self.saved = read_json(folder / SESSION) if (folder / SESSION).exists() else {}
        if self.saved.get("round") != server_round:
            raise UserError(f"secure aggregation: this client has no update of round {server_round}")
        self.about = bytes.fromhex(self.saved["about"])
        self.own = Secrets(*map(bytes.fromhex, self.saved["secrets"]))
        self.card = secure_sum.read_roll(self.saved["card"])[0][""]

    def shares(self, roll: str) -> dict[str, bytes]:
        """Encrypted shares of the client's own secrets, keyed by recipient.

        Raises:
            UserError: A listed client is unknown or has not signed, or the list is too short.
        """
        self._require_next("roll")
        cards, _ = secure_sum.read_roll(roll)
        if cards.get(self.client) != self.card:
            raise UserError("secure aggregation: the list of the round lacks this client's own keys")
        self._require_listed(list(cards), list(cards))
        for name, card in cards.items():
            if self.peers and not self._has_signed(name, card.signature, card.signed(self.about)):
                raise UserError(
                    f"secure aggregation: client {name} did not sign the keys that the server lists for it in"
                    " this round, or received another model or other settings"
                )
        least = secure_sum.threshold(len(cards))
        seeds, keys = (secure_sum.split(part, len(cards), least) for part in (self.own.seed, self.own.mask))
        self._save("roll", roll)
        return {
            name: secure_sum.seal(self.own.seal, card.seal, self._direction(self.client, name), seed + key)
            for (name, card), seed, key in zip(cards.items(), seeds, keys, strict=True)
        }

    def masked(self, sealed: Mapping[str, bytes]) -> Words:
        """The masked change (num_values,).

        Args:
            sealed: Encrypted shares for this client, keyed by sender.

        Raises:
            UserError: It names clients that are not on the list, or too few.
        """
        self._require_next("sealed")
        cards, cap = secure_sum.read_roll(self.saved["roll"])
        self._require_listed(list(sealed), list(cards))
        change: Float64 = np.load(self._change)
        most = self.saved["most"]
        weight, bound = 1.0, secure_sum.bound_of(most, len(cards))
        if most is None:
            weight = secure_sum.weights_of({n: c.num_examples for n, c in cards.items()}, cap)[self.client]
        else:
            change = clip(change, secure_sum.room_for_rounding(most, len(cards), change.size))
        others = {name: cards[name].mask for name in sealed if name != self.client}
        values = secure_sum.encode(change, weight, bound)
        self._save("sealed", {name: text.hex() for name, text in sealed.items()})
        return secure_sum.masked(values, self.client, self.own, others, self.about)

    def confirm(self, survivors: Sequence[str]) -> bytes:
        """Sign the names of the clients whose vectors are in the sum; empty in a simulation.

        Raises:
            UserError: They are too few, or they, the weights, the broadcast or the settings differ from an
                earlier attempt at this round.
        """
        self._require_next("survivors")
        self._require_listed(survivors, list(self.saved["sealed"]))
        path = self.folder / "confirmed.json"
        confirmed = read_json(path) if path.exists() else {}
        cards, cap = secure_sum.read_roll(self.saved["roll"])
        now = secure_sum.capped({name: cards[name].num_examples for name in sorted(survivors)}, cap)
        # It contains the run's name, which changes if the folder of a simulation is moved.
        about = self.saved["about"] if self.peers else ""
        before_about, before = confirmed.setdefault(str(self.round), [about, now])
        if before_about != about:
            raise UserError(
                f"secure aggregation: round {self.round} already has a sum; another model or other settings"
                " would reveal what single clients sent"
            )
        if before != now:
            raise UserError(
                f"secure aggregation: round {self.round} already has a sum of {_listed(before)}; one of"
                f" {_listed(now)} would reveal what single clients sent"
            )
        write_json(path, confirmed)
        self._save("survivors", sorted(survivors))
        return self.peers.sign(self._survivors_digest()) if self.peers else b""

    def unmask(self, signatures: Mapping[str, bytes]) -> dict[str, bytes]:
        """Shares by client: of the seed if its vector is in the sum, of the key if it was lost.

        Raises:
            UserError: Too few clients have signed the same list as this one.
        """
        self._require_next("unmasked")
        survivors, (cards, _) = self.saved["survivors"], secure_sum.read_roll(self.saved["roll"])
        if self.peers:
            text, least = self._survivors_digest(), secure_sum.threshold(len(cards))
            signed = [name for name in survivors if self._has_signed(name, signatures.get(name, b""), text)]
            if len(signed) < least:
                raise UserError(
                    f"secure aggregation: {len(signed)} of {len(cards)} clients have signed the list of names"
                    f" in the sum; {least} must sign the same list"
                )
        found: dict[str, bytes] = {}
        for name, sealed in self.saved["sealed"].items():
            about, place = self._direction(name, self.client), 0 if name in survivors else SHARE_BYTES
            with suppress(InvalidTag):  # that client encrypted no share for this one, but did for others
                both = secure_sum.unseal(self.own.seal, cards[name].seal, about, bytes.fromhex(sealed))
                found[name] = both[place : place + SHARE_BYTES]
        (self.folder / SESSION).unlink()  # the secrets are used up, and must never be read again
        self._change.unlink()
        return found

    @property
    def _change(self) -> Path:
        return self.folder / f"{self.card.mask.hex()}.npy"

    def _require_listed(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Reject a list that lacks this client, contains unknown clients, or is too short."""
        listed = secure_sum.read_roll(self.saved["roll"])[0] if "roll" in self.saved else known
        least = max(
            secure_sum.threshold(len(listed)), LEAST_CLIENTS, self.peers.min_clients if self.peers else 0
        )
        if self.client not in names or not set(names) <= set(known) or len(set(names)) != len(names):
            raise UserError("secure aggregation: the server's list of clients is not the list of this round")
        if len(names) < least:
            raise UserError(
                f"secure aggregation: a sum of {len(names)} of {len(listed)} clients is too small for this"
                f" client; it requires {least}"
            )

    def _has_signed(self, name: str, signature: bytes, text: bytes) -> bool:
        assert self.peers
        return name == self.client or self.peers.has_signed(name, signature, text)

    def _require_next(self, step: str) -> None:
        if [name for name in STEPS if name in self.saved] != list(STEPS[: STEPS.index(step)]):
            raise UserError(f"secure aggregation: round {self.round}: {step} is out of order")

    def _save(self, step: str, what: Any) -> None:
        self.saved[step] = what
        write_file(self.folder / SESSION, json.dumps(self.saved), SECRET)

    def _direction(self, sender: str, receiver: str) -> bytes:
        return secure_sum.digest(self.about, sender.encode(), receiver.encode())

    def _survivors_digest(self) -> bytes:
        return secure_sum.survivors_digest(self.about, self.saved["roll"], self.saved["survivors"])


def _listed(weights: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({weight})" for name, weight in weights.items())
