"""Pictures of robots by MuJoCo's own renderer, drawn without a screen."""

from __future__ import annotations

import os
import sys
from copy import copy
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    import mujoco

BACKENDS = ("egl", "osmesa")
"""Rendering without a screen: by the graphics driver, or by the processor. MUJOCO_GL chooses one of them."""
MAX_GEOMS = 1000


class Camera:
    """Takes square pictures of a model's robots; belongs to the thread that made it."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        import mujoco

        model = _on_endless_floor(model)
        self.size, self._model = size, model
        canvas = model.vis.global_
        canvas.offwidth, canvas.offheight = max(canvas.offwidth, size), max(canvas.offheight, size)
        self._context = _context(size)
        self._drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawing)
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._view = mujoco.MjvCamera()
        if model.ncam:  # the models' first camera follows the robot
            self._view.fixedcamid, self._view.type = 0, mujoco.mjtCamera.mjCAMERA_FIXED.value
        else:
            mujoco.mjv_defaultFreeCamera(model, self._view)

    def picture(self, data: mujoco.MjData) -> np.ndarray:
        """RGB uint8 [size, size, 3] of a simulation; all that depends on its state is recomputed in `data`."""
        import mujoco

        assert self._context is not None, "the camera was closed"
        mujoco.mj_forward(self._model, data)
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateCamera(self._model, data, self._view, self._scene)  # an endless floor is drawn around it
        mujoco.mjv_updateScene(self._model, data, mujoco.MjvOption(), None, self._view, every, self._scene)
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        window = mujoco.MjrRect(0, 0, self.size, self.size)
        self._context.make_current()
        mujoco.mjr_render(window, self._scene, self._drawing)
        mujoco.mjr_readPixels(pixels, None, window, self._drawing)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL counts lines from below

    def close(self) -> None:
        """Frees the renderer's memory, while its context is the current one."""
        if self._context is not None:
            self._context.make_current()
            self._drawing.free()
            self._context.free()
            self._context = None

    def __del__(self) -> None:
        if hasattr(self, "_scene") and not sys.is_finalizing():  # at exit the display is already closed
            self.close()


def _on_endless_floor(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy whose floors are drawn without end, as the engine treats them: the models' are 80 m wide."""
    import mujoco

    endless = copy(model)
    for floor in np.flatnonzero(endless.geom_type == mujoco.mjtGeom.mjGEOM_PLANE.value):
        width = 2.0 * endless.geom_size[floor, :2].copy()
        if width.all() and endless.geom_matid[floor] >= 0:
            endless.mat_texrepeat[endless.geom_matid[floor]] /= width  # of an endless floor it counts per metre
        endless.geom_size[floor, :2] = 0.0
    return endless


def _context(size: int) -> Any:
    """A current OpenGL context for pictures of that size, of the first backend that works here."""
    requested = os.environ.get("MUJOCO_GL", "").strip().lower()
    errors = []
    for name in (requested,) if requested in BACKENDS else BACKENDS:
        try:
            context = import_module(f"mujoco.{name}").GLContext(size, size)
            context.make_current()
        except Exception as error:  # each backend has its own types: missing libraries, drivers, devices
            errors.append(f"{name}: {error}")
        else:
            return context
    raise UserError(
        f"cannot draw without a screen ({'; '.join(errors)}); install libegl1 (Mesa's or a "
        "graphics driver's) or libosmesa6, and set MUJOCO_GL=egl or MUJOCO_GL=osmesa before Python starts"
    )
