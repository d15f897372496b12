// MAD-AD's reverse process and score (arXiv 2502.16943, section 3), number for number as in madad_lite/diffusion.py and
// madad_lite/scoring.py. Nothing here knows of a page: every function takes numbers and gives numbers.
//
// | here              | paper         | meaning                                                    |
// |-------------------|---------------|------------------------------------------------------------|
// | x0                | x_0           | a slice, H x W values in [-1, 1], background -1            |
// | z0, z_t           | z_0, z_t      | its latent, C x h x w, and what becomes of it              |
// | z0_hat            | z_0-hat       | the denoiser's estimate of the clean latent                |
// | probability       | M-hat         | the denoiser's chance that a cell is noised, h x w         |
// | alphas_cumprod[t] | alpha-bar_t   | share of the signal's variance that is left at step t      |
//
// `settings` is the settings.json that `madad export-onnx` writes beside the models.

// ---------------------------------------------------------------- the selective reverse process

/** The DDIM step from z_t to z_{t-1} (Song et al. 2021, equations 12 and 16); z0_hat is predicted, not the noise. */
export function ddimStep(z_t, z0_hat, t, noise, eta, settings) {
  const stride = Math.floor(settings.num_train_timesteps / settings.num_inference_steps);
  const abar = settings.alphas_cumprod[t];
  const abarBefore = t - stride >= 0 ? settings.alphas_cumprod[t - stride] : settings.final_alpha_cumprod;
  const sigma = eta * Math.sqrt(((1 - abarBefore) / (1 - abar)) * (1 - abar / abarBefore));
  return z_t.map((z, i) => {
    const epsilon = (z - Math.sqrt(abar) * z0_hat[i]) / Math.sqrt(1 - abar);
    const direction = Math.sqrt(1 - abarBefore - sigma * sigma) * epsilon;
    return Math.sqrt(abarBefore) * z0_hat[i] + direction + (sigma > 0 ? sigma * noise[i] : 0);
  });
}

/**
 * z_{t-1} = M-hat * DDIM(z_t, z0_hat, t) + (1 - M-hat) * z_t,  M-hat = [probability > threshold]  (section 3).
 *
 * It starts from the scan's own latent; no noise is added.
 * denoiser: async (z_t, t) -> {z0_hat, mask_logits}. stepNoise: (step) -> normal numbers, as many as z0 has.
 * Gives {latent, trajectory: S + 1 latents, probabilities: S times h x w, replaced: S times h x w of 0 and 1}.
 */
export async function selectiveReverse(denoiser, z0, settings, { eta, threshold, stepNoise, onStep }) {
  let z_t = z0;
  const trajectory = [z0], probabilities = [], replaced = [];
  for (const [step, t] of settings.timesteps.entries()) {
    const { z0_hat, mask_logits } = await denoiser(z_t, t);
    const probability = mask_logits.map((x) => 1 / (1 + Math.exp(-x)));
    const noisy = Uint8Array.from(probability, (p) => (p > threshold ? 1 : 0));
    const stepped = ddimStep(z_t, z0_hat, t, eta > 0 ? stepNoise(step) : null, eta, settings);
    const cells = noisy.length;  // the mask is one for all channels
    z_t = stepped.map((z, i) => (noisy[i % cells] ? z : trajectory[step][i]));
    trajectory.push(z_t);
    probabilities.push(probability);
    replaced.push(noisy);
    if (onStep) await onStep(step);
  }
  return { latent: z_t, trajectory, probabilities, replaced };
}

// ---------------------------------------------------------------- the score

/**
 * a = G_sigma * min(|x0_hat - x0|^p, gamma) / gamma  (section 3.3), with what this repository adds: a weight of the
 * network's own certainty, and one of the brightness that lesions mostly have.
 *
 * healed, reference, x0: H x W in [-1, 1]. brain: H x W of 0 and 1. certainty: h x w. Gives H x W in [0, 1].
 */
export function anomalyMap(healed, reference, x0, brain, certainty, settings) {
  const side = settings.image[3], p = settings.squared ? 2 : 1;
  const gamma = settings.gamma ?? 2 ** p;  // without one the largest possible difference becomes 1
  let a = healed.map((x, i) => Math.min(Math.abs(x - reference[i]) ** p, gamma) / gamma);
  if (settings.weighted) {
    const weight = enlarge(certainty, settings.latent[3], side), floor = settings.mask_floor;
    a = a.map((x, i) => x * (floor + (1 - floor) * weight[i]));
  }
  if (settings.sigma > 0) a = smooth(a, side, settings.sigma);
  a = a.map((x, i) => (brain[i] ? Math.min(Math.max(x, 0), 1) : 0));
  const w = settings.intensity_weight, sign = settings.bright_lesions ? 1 : -1;
  return a.map((x, i) => (x * (1 + w * Math.min(Math.max(sign * x0[i], 0), 1))) / (1 + w));
}

/** The largest value of each cell over the steps. */
export function largest(probabilities) {
  return probabilities[0].map((_, i) => Math.max(...probabilities.map((p) => p[i])));
}

/** A square of `from` x `from` values, enlarged to `to` x `to`: linear, pixels taken at their centres. */
export function enlarge(values, from, to) {
  const at = Array.from({ length: to }, (_, i) => {
    const x = Math.max(0, ((i + 0.5) * from) / to - 0.5), low = Math.min(Math.floor(x), from - 1);
    return { low, high: Math.min(low + 1, from - 1), share: x - low };
  });
  const out = new Float32Array(to * to);
  at.forEach((r, row) => at.forEach((c, column) => {
    const upper = values[r.low * from + c.low] * (1 - c.share) + values[r.low * from + c.high] * c.share;
    const lower = values[r.high * from + c.low] * (1 - c.share) + values[r.high * from + c.high] * c.share;
    out[row * to + column] = upper * (1 - r.share) + lower * r.share;
  }));
  return out;
}

/** Gaussian smoothing of a square: a kernel of 4 sigma, reflected at the border (d c b a | a b c d | d c b a). */
export function smooth(values, side, sigma) {
  const radius = Math.floor(4 * sigma + 0.5);
  const kernel = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
  const total = kernel.reduce((a, b) => a + b, 0);
  const reflected = (i) => {
    const folded = ((i % (2 * side)) + 2 * side) % (2 * side);
    return folded < side ? folded : 2 * side - 1 - folded;
  };
  const along = (from, strideAlong, strideAcross) => {
    const out = new Float32Array(side * side);
    for (let line = 0; line < side; line++) {
      for (let i = 0; i < side; i++) {
        let sum = 0;
        for (let k = -radius; k <= radius; k++) {
          sum += kernel[k + radius] * from[line * strideAcross + reflected(i + k) * strideAlong];
        }
        out[line * strideAcross + i * strideAlong] = sum / total;
      }
    }
    return out;
  };
  return along(along(values, side, 1), 1, side);
}

// ---------------------------------------------------------------- numbers that are shown

/** 2 |A and B| / (|A| + |B|) of two masks; null where both are empty. */
export function dice(a, b) {
  let both = 0, sum = 0;
  for (let i = 0; i < a.length; i++) {
    both += a[i] && b[i] ? 1 : 0;
    sum += (a[i] ? 1 : 0) + (b[i] ? 1 : 0);
  }
  return sum ? (2 * both) / sum : null;
}

/** Millilitres of a mask in one slice. */
export function millilitres(mask, settings) {
  const { spacing, z_spacing } = settings.grid;
  return (mask.reduce((n, m) => n + (m ? 1 : 0), 0) * spacing * spacing * (z_spacing ?? spacing)) / 1000;
}

// ---------------------------------------------------------------- random numbers

/** Uniform numbers in [0, 1) that a seed decides (a 32-bit mixing generator). */
export function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
  };
}

/** n standard normal numbers (Box and Muller 1958). */
export function normal(n, draw) {
  return Float32Array.from({ length: n }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - draw()));
    return radius * Math.cos(2 * Math.PI * draw());
  });
}

// ---------------------------------------------------------------- painting

/**
 * What a brush does to a slice. A stroke is {erase, size, grey, softness, texture, points}: size, the radius in pixels;
 * grey in [-1, 1]; softness and texture in [0, 1]; points, [x, y, x, y, ..] in pixels.
 * Gives {image, covered}, H x W each: the painted slice, and how far each pixel is painted, 0 to 1.
 */
export function paint(x0, brain, strokes, side) {
  let image = Float32Array.from(x0), covered = new Float32Array(x0.length);
  for (const stroke of strokes) {
    const reach = coverage(stroke, side), grain = uniform(7);
    const texture = smooth(Float32Array.from({ length: side * side }, () => grain() - 0.5), side, 0.6);
    image = image.map((value, i) => {
      if (!brain[i] || !reach[i]) return value;
      const grey = Math.min(Math.max(stroke.grey + 1.5 * stroke.texture * texture[i], -1), 1);
      return value + reach[i] * ((stroke.erase ? x0[i] : grey) - value);
    });
    covered = covered.map((c, i) => {
      if (!brain[i]) return 0;
      return stroke.erase ? c * (1 - reach[i]) : Math.max(c, reach[i]);
    });
  }
  return { image, covered };
}

/** How strongly a stroke touches each pixel: 1 along its middle, 0 beyond its size, falling off over its soft share. */
function coverage({ size, softness, points }, side) {
  const out = new Float32Array(side * side);
  const hard = size * (1 - softness), fall = Math.max(size - hard, 0.75);
  for (let p = 0; p < points.length; p += 2) {
    const [bx, by] = points.slice(p, p + 2), [ax, ay] = p ? points.slice(p - 2, p) : [bx, by];
    const length2 = (bx - ax) ** 2 + (by - ay) ** 2, margin = hard + fall + 1;
    const rows = [Math.min(ay, by) - margin, Math.max(ay, by) + margin];
    const columns = [Math.min(ax, bx) - margin, Math.max(ax, bx) + margin];
    for (let y = Math.max(0, Math.floor(rows[0])); y <= Math.min(side - 1, rows[1]); y++) {
      for (let x = Math.max(0, Math.floor(columns[0])); x <= Math.min(side - 1, columns[1]); x++) {
        const along = length2 ? Math.min(Math.max(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length2, 0), 1) : 0;
        const distance = Math.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay));
        const reach = Math.min(Math.max((hard + fall - distance) / fall, 0), 1);
        const i = y * side + x, rounded = reach * reach * (3 - 2 * reach);
        if (rounded > out[i]) out[i] = rounded;
      }
    }
  }
  return out;
}

// ---------------------------------------------------------------- a person's own slice

/** Grey values, 0 outside the brain, as a slice: x = v / median - 1, clipped (madad_lite/scans/prepare.py). */
export function normalised(values) {
  const inside = values.filter((v) => v > 0).sort();
  if (!inside.length) throw new Error("there is nothing but black in this picture");
  const middle = inside.length / 2;
  const median = inside.length % 2 ? inside[Math.floor(middle)] : (inside[middle - 1] + inside[middle]) / 2;
  const brain = Uint8Array.from(values, (v) => (v > 0 ? 1 : 0));
  return { x0: Float32Array.from(values, (v) => (v > 0 ? Math.min(Math.max(v / median - 1, -1), 1) : -1)), brain };
}

/** A NIfTI-1 file's bytes -> {shape, affine, at(x, y, z) in MNI mm}. Throws a sentence for what it cannot read. */
export function readNifti(buffer) {
  const view = new DataView(buffer);
  const little = view.byteLength > 348 && view.getInt32(0, true) === 348;
  if (!little && !(view.byteLength > 348 && view.getInt32(0, false) === 348)) throw new Error("this is no NIfTI-1 file");
  const int16 = (at) => view.getInt16(at, little), float32 = (at) => view.getFloat32(at, little);
  const shape = [42, 44, 46].map(int16), kind = int16(70), start = float32(108);
  if (int16(40) > 3 && int16(48) > 1) throw new Error("this file holds several volumes; give one of them");
  if (int16(254) <= 0) throw new Error("this file does not say where its voxels lie (no sform); save it again with one");
  const readers = {
    2: ["getUint8", 1], 256: ["getInt8", 1], 4: ["getInt16", 2], 512: ["getUint16", 2], 8: ["getInt32", 4],
    768: ["getUint32", 4], 16: ["getFloat32", 4], 64: ["getFloat64", 8],
  };
  if (!readers[kind]) throw new Error(`its numbers are of a kind that this page does not read (${kind})`);
  const [read, width] = readers[kind];
  if (start + shape[0] * shape[1] * shape[2] * width > view.byteLength) throw new Error("this file ends too early");
  const slope = float32(112) || 1, intercept = float32(112) ? float32(116) : 0;
  const affine = [280, 296, 312].map((at) => [0, 4, 8, 12].map((k) => float32(at + k)));  // voxel -> mm
  const inverse = inverted(affine);
  const voxel = (i, j, k) => {
    if (i < 0 || j < 0 || k < 0 || i >= shape[0] || j >= shape[1] || k >= shape[2]) return 0;
    const value = view[read](start + (i + shape[0] * (j + shape[1] * k)) * width, little);
    return Number.isFinite(value) ? value * slope + intercept : 0;
  };
  const at = (x, y, z) => {  // linear between the eight voxels around
    const v = inverse.map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
    const low = v.map(Math.floor), share = v.map((c, axis) => c - low[axis]);
    let sum = 0, touched = 0;
    for (let corner = 0; corner < 8; corner++) {
      const bit = [corner & 1, (corner >> 1) & 1, corner >> 2];
      const weight = bit.reduce((product, b, axis) => product * (b ? share[axis] : 1 - share[axis]), 1);
      const value = voxel(low[0] + bit[0], low[1] + bit[1], low[2] + bit[2]);
      sum += weight * value;
      touched += value > 0 ? weight : 0;
    }
    return touched > 0.5 ? sum / touched : 0;  // the background does not darken the rim
  };
  return { shape, affine, at };
}

/** The inverse of a 3 x 4 affine. */
function inverted(m) {
  const minor = (r, c) => {
    const [a, b] = [0, 1, 2].filter((i) => i !== r), [d, e] = [0, 1, 2].filter((i) => i !== c);
    return (m[a][d] * m[b][e] - m[a][e] * m[b][d]) * ((r + c) % 2 ? -1 : 1);
  };
  const determinant = [0, 1, 2].reduce((sum, c) => sum + m[0][c] * minor(0, c), 0);
  if (!determinant) throw new Error("this file's voxels have no place in space (its sform has no inverse)");
  return [0, 1, 2].map((r) => {
    const row = [0, 1, 2].map((c) => minor(c, r) / determinant);
    return [...row, -row.reduce((sum, value, c) => sum + value * m[c][3], 0)];
  });
}

/** One level of a volume on the model's grid: rows from anterior to posterior, columns from left to right. */
export function cut(volume, z, settings) {
  const { spacing, size } = settings.grid, half = ((size - 1) / 2) * spacing;
  const values = new Float32Array(size * size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      values[row * size + column] = volume.at(column * spacing - half, -18 + half - row * spacing, z);
    }
  }
  return values;
}
