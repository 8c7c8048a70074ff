import { LunetteError } from '../core/errors.ts';
import { alignUp, KiB } from '../core/units.ts';
import type { CreateBacking, FormatCreator } from '../driver.ts';
import { ABSENT } from '../image/extent.ts';
import { CREATE_TYPES, createVmdk, type VmdkCreateType } from './create.ts';
import { writeStreamOptimized } from './stream-writer.ts';
import type { AdapterType } from './write-descriptor.ts';

/** New VMDK disks. */
export const vmdkCreator: FormatCreator = {
  format: 'vmdk',
  options: [
    {
      name: 'adapter_type',
      kind: 'choice',
      choices: ['lsilogic', 'ide', 'buslogic', 'legacyESX', 'pvscsi'],
      default: 'lsilogic',
      meaning: 'the controller that the disk is made for',
    },
    { name: 'hwversion', kind: 'string', meaning: 'virtual hardware version (4)' },
    { name: 'toolsversion', kind: 'string', meaning: 'version of the guest tools' },
    {
      name: 'subformat',
      kind: 'choice',
      choices: [...CREATE_TYPES, 'streamOptimized'],
      default: 'monolithicSparse',
      meaning: 'how the disk is laid out in files',
    },
    {
      name: 'grain_size',
      kind: 'size',
      default: 64 * KiB,
      meaning: 'bytes in a grain of sparse files: 4k to 2M, a power of two',
    },
  ],
  sizeOf: (size) => alignUp(size, 512),
  async create(storage, { size, values, backing, createFile }) {
    const common = {
      adapterType: values.adapter_type as AdapterType,
      ...(values.hwversion === undefined ? {} : { hwVersion: String(values.hwversion) }),
      ...(values.toolsversion === undefined ? {} : { toolsVersion: String(values.toolsversion) }),
    };
    const parent = parentOf(backing, storage.path);
    if (values.subformat === 'streamOptimized') {
      if (parent !== undefined) {
        throw new LunetteError('INVALID', 'a streamOptimized disk has no backing file', { path: storage.path });
      }
      await writeStreamOptimized(emptyDisk(size), storage, common);
      return;
    }
    await createVmdk(storage, {
      ...common,
      size,
      type: values.subformat as VmdkCreateType,
      grainSize: values.grain_size as number,
      createFile,
      ...(parent === undefined ? {} : { parent }),
    });
  },
};

function parentOf(backing: CreateBacking | undefined, path: string) {
  if (backing === undefined) return undefined;
  const { CID: cid, uuidCreate: uuid, uuidModify: modification } = backing.ids ?? {};
  if (cid === undefined) {
    throw new LunetteError('INVALID', 'a VMDK disk stands on VMDK disks only: it names its parent by a CID', {
      path,
      help: 'qcow2 takes any backing file.',
    });
  }
  return { hint: backing.reference, cid: Number.parseInt(cid, 16), uuid, modification };
}

/** A disk of zeros, as a source to write a stream from. */
function emptyDisk(size: number): Parameters<typeof writeStreamOptimized>[0] {
  return {
    size,
    async map(offset, length, out) {
      out.begin(offset);
      out.append(ABSENT, length);
      return out.count;
    },
    tryReadv(_offset, iov) {
      iov.fill(0, iov.byteLength);
      return true;
    },
    async readv(_offset, iov) {
      iov.fill(0, iov.byteLength);
    },
  };
}
