"use strict";
// Three NiiVue canvases with one crosshair. Volumes are classic scripts that call `cdmVolume`: from
// disk a page may load these, but may not fetch a file.

const data = JSON.parse(document.getElementById("viewer-data").textContent);
const byId = (id) => document.getElementById(id);
const AXES = ["x", "y", "z"];
const TRANSLUCENT = 2; // NiiVue: below cal_min the opacity is (value / cal_min) squared
const FULL = 1000; // an overlay's value at which its color is opaque
const FROM_LEFT = [270, 0]; // azimuth and elevation of the plane that opens the 3D view
const UNCUT = [2, 0, 0]; // a depth beyond the volume
const VIEWS = ["input", "synthesis", "truth"];
const waiting = new Map();
const loaded = new Map();

globalThis.cdmVolume = (name, base64) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  waiting.get(name)(URL.createObjectURL(new Blob([bytes])));
};

function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `../volumes/${encodeURIComponent(name).replaceAll("%2F", "/")}.js`;
      script.onerror = () => reject(new Error(`volumes/${name}.js cannot be read`));
      document.head.append(script);
    }));
  }
  return loaded.get(name);
}

function say(text) {
  byId("status").textContent = text;
}

function options(select, values) {
  select.replaceChildren(...[...new Set(values)].map((value) => new Option(value, value)));
}

function find(role) {
  const target = byId("target").value;
  return data.images.find((image) => image.role === role && (
    role === "input" ? image.modality === byId("input").value
      : image.modality === target && (role === "truth" || image.system === byId("system").value)));
}

async function volumesOf(role) {
  const image = find(role);
  if (!image) return [];
  const volumes = [{ url: await load(image.files.image), name: "image.nii.gz", cal_min: 0, cal_max: 255 }];
  const overlay = byId("overlay").value;
  if (role === "synthesis" && overlay && image.files[overlay]) {
    const url = await load(image.files[overlay]);
    const colors = overlay === "error"
      ? { colormap: "cdm-bright", colormapNegative: "cdm-dark" } : { colormap: `cdm-${overlay}` };
    volumes.push({ url, name: `${overlay}.nii.gz`, cal_min: FULL, cal_max: FULL + 1, ...colors });
  }
  return volumes;
}

async function fill(viewer, role) {
  await viewer.loadVolumes(await volumesOf(role));
  for (const overlay of viewer.volumes.slice(1)) overlay.colormapType = TRANSLUCENT;
  viewer.updateGLVolume();
}

function titles() {
  const overlay = byId("overlay").value;
  for (const role of VIEWS) {
    const image = find(role);
    byId(`${role}-title`).textContent = image ? image.title : `No ${role}`;
  }
  const missing = overlay && !find("synthesis")?.files[overlay];
  for (const legend of document.querySelectorAll(".legend")) {
    legend.hidden = missing || legend.dataset.kind !== overlay;
  }
  const none = overlay === "interval" ? "This system has no calibrated intervals to show."
    : "This system draws one image only: there is no uncertainty to show.";
  say(missing ? none : "");
}

// Zero is transparent and gray: NiiVue mixes neighbors' colors without regard to their opacity.
function colormap(viewer, name, color) {
  const [R, G, B] = color.map((level) => [128, level, level]);
  viewer.addColormap(name, { R, G, B, A: [0, 255, 255], I: [0, 1, 255] });
}

async function makeViewer(role) {
  const viewer = new Niivue({
    logLevel: "error", isRadiologicalConvention: true, sagittalNoseLeft: true, show3Dcrosshair: true,
    multiplanarLayout: 2, multiplanarShowRender: 1, scrollRequiresFocus: true,
    dragAndDropEnabled: false, crosshairWidth: 0.5, crosshairColor: [1, 0.8, 0, 0.8], backColor: [0, 0, 0, 1],
    fontColor: [0.8, 0.8, 0.8, 1], clipPlaneColor: [0, 0, 0, 0],
  });
  await viewer.attachToCanvas(byId(`${role}-canvas`), false);
  colormap(viewer, "cdm-bright", data.colors.bright);
  colormap(viewer, "cdm-dark", data.colors.dark);
  colormap(viewer, "cdm-deviation", data.colors.deviation);
  colormap(viewer, "cdm-interval", data.colors.interval);
  return viewer;
}

function showPlace(viewers) {
  const base = viewers[0];
  const voxel = base.frac2vox(base.scene.crosshairPos);
  const millimeters = base.frac2mm(base.scene.crosshairPos);
  AXES.forEach((axis, n) => {
    const slider = byId(`cross-${axis}`);
    const count = Number(slider.max) + 1;
    slider.value = voxel[n];
    slider.nextElementSibling.textContent = `${voxel[n] + 1} of ${count}`;
    slider.setAttribute("aria-valuetext", `${voxel[n] + 1} of ${count}, ${millimeters[n].toFixed(0)} mm`);
  });
  const values = viewers.map((viewer, n) => {
    if (!viewer.volumes.length) return `${VIEWS[n]} –`;
    const [x, y, z] = viewer.volumes[0].mm2vox([...millimeters].slice(0, 3));
    return `${VIEWS[n]} ${(viewer.volumes[0].getValue(x, y, z) / 255).toFixed(2)}`;
  });
  cut(viewers);
  byId("values").textContent = `At the crosshair: ${values.join(", ")}.`;
}

function cut(viewers) {
  const depth = 0.5 - viewers[0].scene.crosshairPos[0];
  const plane = byId("cut").checked ? [depth, ...FROM_LEFT] : UNCUT;
  for (const viewer of viewers) viewer.setClipPlane(plane);
}

function moveTo(viewers, millimeters) {
  for (const viewer of viewers) {
    if (!viewer.volumes.length) continue;
    viewer.scene.crosshairPos = viewer.mm2frac(millimeters);
    viewer.drawScene();
  }
  showPlace(viewers);
}

function link(viewers) {
  for (const viewer of viewers) {
    viewer.broadcastTo(viewers.filter((other) => other !== viewer), { "2d": true, "3d": true });
    viewer.onLocationChange = () => {
      if (viewer.canvas.matches(":focus")) showPlace(viewers);
    };
  }
  const place = () => AXES.map((axis) => Number(byId(`cross-${axis}`).value));
  for (const axis of AXES) {
    byId(`cross-${axis}`).addEventListener("input", () => {
      const base = viewers[0];
      moveTo(viewers, base.frac2mm(base.vox2frac(place())));
    });
  }
}

function sliders(viewer) {
  const [, ...shape] = viewer.volumes[0].dimsRAS;
  AXES.forEach((axis, n) => {
    const slider = byId(`cross-${axis}`);
    slider.max = shape[n] - 1;
    slider.disabled = false;
  });
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("this browser has no WebGL 2, which the viewer draws with");
  }
  const of = (role, key) => data.images.filter((image) => image.role === role).map((image) => image[key]);
  options(byId("input"), of("input", "modality"));
  options(byId("target"), of("truth", "modality"));
  options(byId("system"), of("synthesis", "system"));
  const viewers = [];
  for (const role of VIEWS) viewers.push(await makeViewer(role));
  const show = async (roles) => {
    for (const role of roles) await fill(viewers[VIEWS.indexOf(role)], role);
    titles();
    showPlace(viewers);
  };
  await show(VIEWS);
  sliders(viewers[0]);
  link(viewers);
  moveTo(viewers, viewers[0].frac2mm(viewers[0].vox2frac(data.focus)));
  let last = Promise.resolve(); // one choice after the other: loading takes a while
  const on = (id, action) => byId(id).addEventListener("change", () => {
    last = last.then(action).catch(fail);
  });
  on("input", () => show(["input"]));
  on("target", () => show(["synthesis", "truth"]));
  on("system", () => show(["synthesis"]));
  on("overlay", () => show(["synthesis"]));
  on("layout", async () => viewers.forEach((viewer) => viewer.setSliceType(Number(byId("layout").value))));
  byId("cut").addEventListener("change", () => cut(viewers));
  globalThis.cdmViewers = viewers;
}

function fail(error) {
  say(`The viewer cannot be shown: ${error.message}.`);
}

start().catch(fail);
