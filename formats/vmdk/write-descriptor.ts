import { randomBytes } from 'node:crypto';
import { cidText, NO_CID } from './descriptor.ts';
import { SECTOR } from './header.ts';

export type AdapterType = 'ide' | 'buslogic' | 'lsilogic' | 'legacyESX' | 'pvscsi';

export interface DescriptorOptions {
  readonly createType: string;
  readonly version?: number;
  /** Bytes of the disk. */
  readonly size: number;
  /** Extent lines as they go into the file. */
  readonly extents: readonly string[];
  readonly adapterType?: AdapterType | undefined;
  /** `ddb.virtualHWVersion`. Default: 4, as QEMU and open-vmdk. */
  readonly hwVersion?: string | undefined;
  /** `ddb.toolsVersion`. Default: 2147483647, which is "unmanaged". */
  readonly toolsVersion?: string | undefined;
  /** The low 32 bits are the CID. Default: random. 32 hexadecimal digits. */
  readonly longContentId?: string | undefined;
  readonly parent?:
    | {
        readonly cid: number;
        readonly hint: string;
        readonly uuid?: string | undefined;
        readonly modification?: string | undefined;
      }
    | undefined;
  /** VirtualBox's ids of the image. Default: random. */
  readonly uuid?: string | undefined;
  readonly modification?: string | undefined;
}

/** The text of a new descriptor, as VMware's programs write it. */
export function descriptorText(options: DescriptorOptions): string {
  const adapter = options.adapterType ?? 'lsilogic';
  const longContentId = options.longContentId ?? newContentId();
  const { heads, sectors, cylinders } = geometryOf(options.size, adapter);
  const nobody = '00000000-0000-0000-0000-000000000000';
  const { parent } = options;
  return [
    '# Disk DescriptorFile',
    `version=${options.version ?? 1}`,
    'encoding="UTF-8"',
    `CID=${longContentId.slice(-8)}`,
    `parentCID=${cidText(parent?.cid ?? NO_CID)}`,
    `createType="${options.createType}"`,
    ...(parent === undefined ? [] : [`parentFileNameHint="${parent.hint}"`]),
    '',
    '# Extent description',
    ...options.extents,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    `ddb.virtualHWVersion = "${options.hwVersion ?? '4'}"`,
    `ddb.geometry.cylinders = "${cylinders}"`,
    `ddb.geometry.heads = "${heads}"`,
    `ddb.geometry.sectors = "${sectors}"`,
    // pvscsi is a controller of the machine; disks for it say lsilogic.
    `ddb.adapterType = "${adapter === 'pvscsi' ? 'lsilogic' : adapter}"`,
    `ddb.toolsVersion = "${options.toolsVersion ?? '2147483647'}"`,
    `ddb.longContentID = "${longContentId}"`,
    `ddb.uuid.image="${options.uuid ?? newUuid()}"`,
    `ddb.uuid.modification="${options.modification ?? newUuid()}"`,
    `ddb.uuid.parent="${parent?.uuid ?? nobody}"`,
    `ddb.uuid.parentmodification="${parent?.modification ?? nobody}"`,
    '',
  ].join('\n');
}

/** Geometry as VMware computes it: IDE disks have 16 heads, SCSI disks 255. */
export function geometryOf(size: number, adapter: AdapterType): { cylinders: number; heads: number; sectors: number } {
  const [heads, limit] = adapter === 'ide' ? [16, 16383] : [255, 65535];
  const sectors = 63;
  return { cylinders: Math.min(limit, Math.ceil(size / SECTOR / (heads * sectors))), heads, sectors };
}

/** 128 random bits whose low half word is usable as a CID. */
export function newContentId(): string {
  for (;;) {
    const id = randomBytes(16).toString('hex');
    if (isUsableCid(Number.parseInt(id.slice(-8), 16))) return id;
  }
}

export function isUsableCid(cid: number): boolean {
  return cid < 0xfffffffe;
}

export function newUuid(): string {
  const hex = randomBytes(16).toString('hex');
  const variant = ((Number.parseInt(hex[16] as string, 16) & 3) | 8).toString(16);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}
