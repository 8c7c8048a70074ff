import type { SnapshotInfo } from '../../formats/image/layer.ts';
import type { ImageHost, Layer } from '../../formats/index.ts';
import type { ExportCatalog, NbdExport } from '../nbd/export.ts';
import { closeTogether } from './close-in-order.ts';
import { exportedBitmaps } from './exported-bitmaps.ts';
import type { ServerLog } from './log.ts';
import { type ExportRequest, type OpenedExport, openExport } from './open-export.ts';

/** An image that is open, under its name. */
export interface NamedExport {
  readonly name: string;
  readonly request: ExportRequest;
  readonly opened: OpenedExport;
}

interface SnapshotExport {
  readonly name: string;
  /** The image that it is in. */
  readonly of: NamedExport;
  readonly description: string;
  readonly request: ExportRequest;
  /** Once somebody has asked for it. */
  opening: Promise<NbdExport> | undefined;
  opened: NbdExport | undefined;
}

/**
 * The exports of an NBD server: the images that were named, and under `NAME@SNAPSHOT` their internal snapshots, also while the image
 * itself is written to. A snapshot is opened when somebody asks for it, and closed when nobody uses it any more.
 */
export class NbdExports implements ExportCatalog {
  readonly #host: ImageHost;
  readonly #log: ServerLog;
  readonly #images: NamedExport[] = [];
  readonly #exports = new Map<string, NbdExport>();
  #snapshots = new Map<string, SnapshotExport>();
  /** Those that are open, or about to be: also one whose name another has taken meanwhile. */
  readonly #begun = new Set<SnapshotExport>();

  constructor(host: ImageHost, log: ServerLog) {
    this.#host = host;
    this.#log = log;
  }

  /** The images that are served, in the order in which they came. */
  get images(): readonly NamedExport[] {
    return this.#images;
  }

  /** One image more; it belongs here from now on, also when this fails. @throws {LunetteError} for bitmaps that cannot be exported */
  async add(named: NamedExport): Promise<void> {
    const { name, request, opened } = named;
    const { image, format } = opened;
    const readOnly = image.readOnly || request.readOnly === true;
    try {
      const bitmaps = await exportedBitmaps(image, request.bitmaps, readOnly);
      this.#exports.set(name, { name, description: format, image, readOnly, bitmaps });
      this.#images.push(named);
      await this.#findSnapshots();
    } catch (error) {
      this.#forget(named);
      await image.close().catch(() => undefined);
      throw error;
    }
  }

  /** Nobody finds an export any more; when `dismiss` has sent away whoever uses it, or a snapshot of it, all are closed. */
  async remove(name: string, dismiss: () => Promise<void>): Promise<void> {
    const named = this.#images.find((image) => image.name === name);
    if (named === undefined) return;
    this.#forget(named);
    try {
      await dismiss();
    } finally {
      await this.#closeSnapshots((snapshot) => snapshot.of === named);
      await named.opened.image.close();
    }
  }

  /** Closes everything. Nobody may use it any more. */
  async close(): Promise<void> {
    await this.#closeSnapshots(() => true);
    const images = this.#images.splice(0).map(({ opened }) => opened.image);
    this.#exports.clear();
    await closeTogether(images);
  }

  #forget(named: NamedExport): void {
    this.#exports.delete(named.name);
    const at = this.#images.indexOf(named);
    if (at >= 0) this.#images.splice(at, 1);
  }

  async #closeSnapshots(isMeant: (snapshot: SnapshotExport) => boolean): Promise<void> {
    for (const [name, snapshot] of this.#snapshots) if (isMeant(snapshot)) this.#snapshots.delete(name);
    for (const snapshot of [...this.#begun].filter(isMeant)) {
      this.#begun.delete(snapshot);
      const opened = await snapshot.opening?.catch(() => undefined);
      await opened?.image.close();
    }
  }

  /** Names of the snapshots that could be had beside the images when somebody last asked. */
  get snapshotNames(): readonly string[] {
    return [...this.#snapshots.keys()];
  }

  async list(): Promise<readonly Pick<NbdExport, 'name' | 'description'>[]> {
    await this.#findSnapshots();
    return [...this.#exports.values(), ...this.#snapshots.values()];
  }

  find(name: string): NbdExport | undefined | Promise<NbdExport | undefined> {
    if (name === '') return [...this.#exports.values()][0];
    return this.#exports.get(name) ?? (name.includes('@') ? this.#findSnapshot(name) : undefined);
  }

  /** Nobody uses an export any more: a snapshot is closed, so that it can be deleted. */
  released(found: NbdExport): void {
    const snapshot = [...this.#begun].find(({ opened }) => opened === found);
    if (snapshot === undefined) return;
    this.#begun.delete(snapshot);
    snapshot.opened = undefined;
    snapshot.opening = undefined;
    found.image.close().catch((error: unknown) => {
      this.#log.warn({ export: found.name }, `${found.name}: closing it failed: ${(error as Error).message}`);
    });
  }

  async #findSnapshot(name: string): Promise<NbdExport | undefined> {
    // Taken or deleted since the last look.
    await this.#findSnapshots();
    const snapshot = this.#snapshots.get(name);
    if (snapshot === undefined) return undefined;
    this.#begun.add(snapshot);
    snapshot.opening ??= this.#open(snapshot);
    const opened = await snapshot.opening;
    // Closed meanwhile, with the image that it is of?
    return this.#begun.has(snapshot) ? opened : undefined;
  }

  async #open(snapshot: SnapshotExport): Promise<NbdExport> {
    try {
      const { image } = await openExport(this.#host, snapshot.request, this.#log);
      snapshot.opened = { name: snapshot.name, description: snapshot.description, image, readOnly: true };
      return snapshot.opened;
    } catch (error) {
      this.#begun.delete(snapshot);
      snapshot.opening = undefined; // to be tried again by the next who asks
      throw error;
    }
  }

  /** Looks which snapshots there are. What is open stays. */
  async #findSnapshots(): Promise<void> {
    const seen: { readonly of: NamedExport; readonly snapshots: readonly SnapshotInfo[] }[] = [];
    for (const named of [...this.#images]) {
      try {
        seen.push({ of: named, snapshots: await snapshotsOf(named.request, named.opened) });
      } catch (error) {
        if (this.#images.includes(named)) throw error; // else it was closed meanwhile
      }
    }
    // In one go: others may look at the same time, and what one of them has opened is not to be forgotten.
    const found = new Map<string, SnapshotExport>();
    for (const { of, snapshots } of seen) {
      if (!this.#images.includes(of)) continue;
      for (const { id, name: tag } of snapshots) {
        const full = `${of.name}@${tag}`;
        if (this.#exports.has(full) || found.has(full)) continue; // of two with one name the first
        const known = this.#snapshots.get(full);
        const same = known?.of === of && known.request.snapshot === id;
        found.set(full, same ? known : snapshotExport(full, id, of));
      }
    }
    for (const begun of this.#begun) {
      if (!found.has(begun.name) && this.#images.includes(begun.of)) found.set(begun.name, begun);
    }
    this.#snapshots = found;
  }
}

function snapshotExport(name: string, id: string, of: NamedExport): SnapshotExport {
  const own = { snapshot: id, readOnly: true, ephemeral: undefined, overlay: undefined };
  return {
    name,
    of,
    description: `${of.opened.format}, snapshot ${id}`,
    request: { ...of.request, ...own },
    opening: undefined,
    opened: undefined,
  };
}

/** Internal snapshots of the file that was named, which stands below an overlay where there is one. */
async function snapshotsOf(request: ExportRequest, { image }: OpenedExport): Promise<readonly SnapshotInfo[]> {
  const { layers } = image as { layers?: readonly Layer[] };
  if (request.snapshot !== undefined || layers === undefined) return [];
  const overlaid = request.ephemeral === true || request.overlay !== undefined;
  return (await layers[overlaid ? 1 : 0]?.describe())?.snapshots ?? [];
}
