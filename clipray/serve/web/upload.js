// Images that the person gives: read, made small enough to send, kept for "back".

export const images = new Map(); // token → {name, url}: a link cannot carry an image, only name it

const MIB = 2 ** 20;
const MAX_BYTES = 20 * MIB;
const MAX_KEPT = 20;
const SHRINK_BYTES = 4 * MIB;
const SHRINK_SIDE = 1024; // models see a few hundred pixels; more is only upload time
const SERVER_READS = /^image\/(jpeg|png|webp|gif|bmp|tiff)$/;

// Gives the token of the image.
export async function keepImage(file) {
  if (!file?.type.startsWith("image/")) throw new Error("This is not an image file.");
  const url = await dataUrl(await smallEnough(file));
  const token = Date.now().toString(36); // must not mean another image in another window
  images.set(token, { name: file.name || "pasted", url });
  if (images.size > MAX_KEPT) images.delete(images.keys().next().value);
  return token;
}

// Large images, and formats that only the browser knows, go out as a smaller JPEG.
async function smallEnough(file) {
  const asIs = file.size <= SHRINK_BYTES && SERVER_READS.test(file.type);
  const blob = asIs ? file : await shrink(file).catch(() => file);
  if (blob.size <= MAX_BYTES) return blob;
  throw new Error(`The image has ${(blob.size / MIB).toFixed(1)} MiB; at most 20 MiB can be sent.`);
}

async function shrink(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SHRINK_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server does with transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("The image cannot be read."));
    reader.readAsDataURL(blob);
  });
}
