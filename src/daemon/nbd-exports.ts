import type { ImageHost, Layer } from '../../formats/index.ts';
import type { ExportCatalog, NbdExport } from '../nbd/export.ts';
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
  readonly description: string;
  readonly request: ExportRequest;
  /** Once somebody has asked for it. */
  open: Promise<NbdExport> | undefined;
}

/**
 * The exports of an NBD server: the images that were named, and under `NAME@SNAPSHOT` the internal snapshots of those that
 * are only read. (An image that is written to is open once, and nobody else reads the file meanwhile.) Snapshots are opened when they are first asked for.
 */
export class NbdExports implements ExportCatalog {
  readonly #host: ImageHost;
  readonly #log: ServerLog;
  readonly #exports = new Map<string, NbdExport>();
  readonly #snapshots = new Map<string, SnapshotExport>();

  private constructor(host: ImageHost, log: ServerLog) {
    this.#host = host;
    this.#log = log;
  }

  static async create(host: ImageHost, images: readonly NamedExport[], log: ServerLog): Promise<NbdExports> {
    const exports = new NbdExports(host, log);
    for (const { name, request, opened } of images) {
      const { image, format } = opened;
      const readOnly = image.readOnly || request.readOnly === true;
      exports.#exports.set(name, { name, description: format, image, readOnly });
      if (request.readOnly === true) await exports.#addSnapshots(name, request, opened);
    }
    return exports;
  }

  /** Names of snapshots that can be had beside the images. */
  get snapshotNames(): readonly string[] {
    return [...this.#snapshots.keys()];
  }

  list(): readonly Pick<NbdExport, 'name' | 'description'>[] {
    return [...this.#exports.values(), ...this.#snapshots.values()];
  }

  find(name: string): NbdExport | undefined | Promise<NbdExport | undefined> {
    if (name === '') return [...this.#exports.values()][0];
    const found = this.#exports.get(name);
    if (found !== undefined) return found;
    const snapshot = this.#snapshots.get(name);
    if (snapshot === undefined) return undefined;
    snapshot.open ??= this.#open(snapshot);
    return snapshot.open;
  }

  async #open(snapshot: SnapshotExport): Promise<NbdExport> {
    try {
      const { image } = await openExport(this.#host, snapshot.request, this.#log);
      return { name: snapshot.name, description: snapshot.description, image, readOnly: true };
    } catch (error) {
      snapshot.open = undefined; // to be tried again by the next who asks
      throw error;
    }
  }

  async #addSnapshots(name: string, request: ExportRequest, { image, format }: OpenedExport): Promise<void> {
    const layers = (image as { layers?: readonly Layer[] }).layers;
    if (request.snapshot !== undefined || layers === undefined) return;
    for (const snapshot of (await layers[0]?.describe())?.snapshots ?? []) {
      const full = `${name}@${snapshot.name}`;
      if (this.#exports.has(full) || this.#snapshots.has(full)) continue; // of two with one name the first
      this.#snapshots.set(full, {
        name: full,
        description: `${format}, snapshot ${snapshot.id}`,
        request: { ...request, snapshot: snapshot.id },
        open: undefined,
      });
    }
  }
}
