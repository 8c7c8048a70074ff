import { ImageError } from '../../formats/core/errors.ts';
import type { ImageHost, Layer, LayerInfo } from '../../formats/index.ts';
import { writerNotice, writerOf } from '../../formats/storage/lock-holders.ts';
import { lookWhileStill } from './still.ts';

/** How a file is opened to be looked at. */
export interface InspectOptions {
  readonly host: ImageHost;
  /** Trust no probing. */
  readonly format?: string | undefined;
  /** Take no locks: others may write to it. What is found is of one moment all the same, or refused. */
  readonly forceShare?: boolean | undefined;
  /** Something that the user should know: who writes to the image meanwhile. */
  readonly notice?: ((message: string) => void) | undefined;
}

/** An image file that is open to be described; what it names is not followed. */
export interface InspectedFile {
  readonly layer: Layer;
  readonly info: LayerInfo;
  /** Runs something that reads the file's tables, so that its answer is of one moment. */
  look<T>(read: () => Promise<T>): Promise<T>;
}

/**
 * Opens one image file, runs `act` on it, and closes it again.
 *
 * @throws {LunetteError} what opening throws; LOCKED while others write to it, unless forceShare
 */
export async function inspectFile<T>(
  path: string,
  { host, format, forceShare = false, notice }: InspectOptions,
  act: (file: InspectedFile) => Promise<T>,
): Promise<T> {
  const layer = await host.openLayer(path, { format, lock: forceShare ? 'shared' : 'default' });
  try {
    const { storage } = layer;
    const writer = forceShare ? await writerOf(storage) : undefined;
    if (writer !== undefined) {
      notice?.(writerNotice(writer));
    }
    const look: InspectedFile['look'] =
      writer === undefined && !forceShare ? (read) => read() : (read) => lookWhileStill(storage, read);
    return await act({ layer, info: await layer.describe(), look });
  } finally {
    // Nothing was written, so nothing is lost when closing fails.
    await layer.close().catch(() => undefined);
  }
}

/** Refuses formats without internal snapshots. @throws {ImageError} UNSUPPORTED */
export function requireInternalSnapshots(layer: Layer): void {
  if (layer.format === 'qcow2') return;
  const external = layer.format === 'vmdk' || layer.format === 'vdi';
  throw new ImageError('UNSUPPORTED', `the format ${layer.format} has no internal snapshots`, {
    path: layer.storage.path,
    help: external
      ? 'Its snapshots are files: lunette snapshot list shows them, and each can be named as an image.'
      : 'lunette create -f qcow2 -b IMAGE makes an overlay, which leaves the image as it is.',
  });
}
