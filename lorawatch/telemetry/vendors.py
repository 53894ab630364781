"""The vendors whose GPUs are sampled: what they are called, and how people act on their cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorawatch.system import visible_devices

PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor of GPUs, for people.

    Attributes:
        key: As `Gpu.vendor`.
        driver_name: `NVIDIA driver`.
        pci_id: The vendor's number on the PCI bus, `0x10de`.
        pci_classes: How the PCI class of its GPUs begins: a display or 3D controller, a processing accelerator.
        torch_build: What a torch build for its GPUs is called.
        tool: The vendor's command that lists its GPUs.
        set_power_limit: The command that sets a power limit.
        when_lost: What to do about a GPU that has gone.
        access: What may keep torch from a GPU that the driver lists.
        untried: Why its readings are to be doubted; None where they were compared on real cards.
    """

    key: str
    driver_name: str
    pci_id: str
    pci_classes: tuple[str, ...]
    torch_build: str
    tool: str
    set_power_limit: str
    when_lost: str
    access: str
    untried: str | None = None

    def present(self, root: Path = PCI) -> bool:
        """Whether the PCI bus has a GPU of this vendor, with or without a driver."""
        try:
            return any(
                path.read_text().strip() == self.pci_id
                and path.with_name("class").read_text().startswith(self.pci_classes)
                for path in root.glob("*/vendor")
            )
        except OSError:
            return False


NVIDIA = Vendor(
    key=visible_devices.NVIDIA,
    driver_name="NVIDIA driver",
    pci_id="0x10de",
    pci_classes=("0x03",),
    torch_build="CUDA",
    tool="nvidia-smi",
    set_power_limit="nvidia-smi -pl",
    when_lost="see dmesg for Xid; a reset or a reboot may bring it back",
    access="is nvidia_uvm loaded?",
)
AMD = Vendor(
    key=visible_devices.AMD,
    driver_name="AMD driver",
    pci_id="0x1002",
    pci_classes=("0x03", "0x12"),
    torch_build="ROCm",
    tool="amd-smi",
    set_power_limit="amd-smi set --power-cap",
    when_lost="see dmesg for amdgpu; a reset or a reboot may bring it back",
    access="may you open /dev/kfd and /dev/dri (groups render and video)?",
    untried="written from AMD's documentation, not tried on a card",
)
