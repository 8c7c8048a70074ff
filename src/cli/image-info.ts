import { alignUp } from '../../formats/core/units.ts';
import type { LayerInfo } from '../../formats/image/layer.ts';

/** What `info` says about one file, with the names, the nesting and the units of qemu-img's JSON. Absent members are undefined. */
export interface ImageInfo {
  readonly filename: string;
  readonly format: string;
  readonly 'virtual-size': number;
  readonly 'actual-size': number | undefined;
  readonly 'cluster-size': number | undefined;
  readonly encrypted: true | undefined;
  readonly compressed: true | undefined;
  readonly 'dirty-flag': boolean;
  readonly 'backing-filename': string | undefined;
  readonly 'full-backing-filename': string | undefined;
  readonly 'backing-filename-format': string | undefined;
  readonly snapshots: readonly SnapshotEntry[] | undefined;
  readonly 'format-specific': { readonly type: string; readonly data: Readonly<Record<string, unknown>> } | undefined;
  readonly children: readonly ChildEntry[] | undefined;
}

export interface SnapshotEntry {
  readonly id: string;
  readonly name: string;
  readonly 'vm-state-size': number;
  readonly 'date-sec': number;
  readonly 'date-nsec': number;
  readonly 'vm-clock-sec': number;
  readonly 'vm-clock-nsec': number;
  readonly icount: number | undefined;
}

/** A file below the format, as QEMU 8.0 and later list them. */
export interface ChildEntry {
  readonly name: string;
  readonly info: {
    readonly filename: string;
    readonly format: string;
    readonly 'virtual-size': number | undefined;
    readonly 'actual-size': number | undefined;
    readonly 'dirty-flag': false;
    readonly 'format-specific': { readonly type: 'file'; readonly data: Readonly<Record<string, never>> } | undefined;
    readonly children: readonly [];
  };
}

/**
 * Puts what a layer says of itself into qemu-img's terms.
 *
 * @param filename as the user, or the image above it, named it
 * @param fileLength bytes of the image's own file
 * @param options children: list the files below, as QEMU does since 8.0
 */
export function imageInfo(
  filename: string,
  layer: LayerInfo,
  fileLength: number,
  options: { readonly children: boolean },
): ImageInfo {
  const snapshots = layer.snapshots ?? [];
  return {
    filename,
    format: layer.format,
    // QEMU counts in sectors; a raw file may end inside one.
    'virtual-size': alignUp(layer.virtualSize, 512),
    'actual-size': layer.actualSize,
    'cluster-size': layer.clusterSize,
    encrypted: layer.encrypted === true ? true : undefined,
    compressed: layer.compressed === true ? true : undefined,
    'dirty-flag': layer.dirty,
    'backing-filename': layer.backingFile,
    'full-backing-filename': layer.backingFile === undefined ? undefined : combine(filename, layer.backingFile),
    'backing-filename-format': layer.backingFormat,
    snapshots: snapshots.length === 0 ? undefined : snapshots.map(snapshotEntry),
    'format-specific': layer.specific && { type: layer.format, data: layer.specific },
    children: options.children ? childEntries(filename, layer, fileLength) : undefined,
  };
}

/** A snapshot with the members of QEMU’s SnapshotInfo. */
export function snapshotEntry(snapshot: NonNullable<LayerInfo['snapshots']>[number]): SnapshotEntry {
  return {
    'vm-clock-nsec': snapshot.vmClockNanoseconds,
    name: snapshot.name,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.vmClockSeconds,
    id: snapshot.id,
    'vm-state-size': snapshot.vmStateSize,
    icount: snapshot.icount,
  };
}

function childEntries(filename: string, layer: LayerInfo, fileLength: number): ChildEntry[] {
  const entry = (name: string, path: string, length?: number, allocated?: number): ChildEntry => {
    const protocol = /^(https?):/i.exec(path)?.[1]?.toLowerCase();
    return {
      name,
      info: {
        filename: path,
        format: protocol ?? 'file',
        'virtual-size': length,
        'actual-size': allocated,
        'dirty-flag': false,
        'format-specific': protocol === undefined ? { type: 'file', data: {} } : undefined,
        children: [],
      },
    };
  };
  // Files that the image names are listed, not looked at: their names come from inside the image.
  return [
    ...(layer.children ?? []).map(({ name, path }) => entry(name, path)),
    entry('file', filename, fileLength, layer.actualSize),
  ];
}

/** Where a backing file's name leads, in qemu-img's spelling: relative to the directory of the name of the image, not normalized. */
export function combine(image: string, reference: string): string {
  const hasScheme = /^[^/]*:/.test(reference);
  if (reference.startsWith('/') || hasScheme) return reference;
  return image.slice(0, image.lastIndexOf('/') + 1) + reference;
}
