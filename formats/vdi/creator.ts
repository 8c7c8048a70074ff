import { LunetteError } from '../core/errors.ts';
import { alignUp, MiB } from '../core/units.ts';
import type { FormatCreator } from '../driver.ts';
import { createVdi } from './create.ts';

/** New VDI images. */
export const vdiCreator: FormatCreator = {
  format: 'vdi',
  options: [
    { name: 'static', kind: 'boolean', default: false, meaning: 'all blocks are there from the start' },
    {
      name: 'block_size',
      kind: 'size',
      meaning: 'bytes in a block: a power of two; QEMU reads 1M only, which is the default',
    },
    { name: 'comment', kind: 'string', meaning: 'text that the header holds' },
  ],
  sizeOf: (size) => alignUp(size, 512),
  async create(storage, { size, values, backing }) {
    const { uuidCreate, uuidModify } = backing?.ids ?? {};
    if (backing !== undefined && (uuidCreate === undefined || uuidModify === undefined)) {
      throw new LunetteError('INVALID', 'a VDI image stands on images with ids only: VDI, or VMDK of VirtualBox', {
        path: storage.path,
        help: 'qcow2 takes any backing file.',
      });
    }
    await createVdi(storage, {
      size,
      type: values.static === true ? 'fixed' : 'dynamic',
      blockSize: (values.block_size as number | undefined) ?? MiB,
      comment: (values.comment as string | undefined) ?? '',
      ...(uuidCreate === undefined || uuidModify === undefined
        ? {}
        : { parentIds: { uuid: uuidCreate, modification: uuidModify } }),
    });
  },
};
