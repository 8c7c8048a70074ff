import { LunetteError } from '../core/errors.ts';
import { alignUp, KiB } from '../core/units.ts';
import type { FormatCreator } from '../driver.ts';
import { createQcow2 } from './create.ts';

/** New qcow2 images. Options have the names and defaults of qemu-img. */
export const qcow2Creator: FormatCreator = {
  format: 'qcow2',
  options: [
    { name: 'cluster_size', kind: 'size', default: 64 * KiB, meaning: 'bytes in a cluster: 512 to 2M, a power of two' },
    {
      name: 'compression_type',
      kind: 'choice',
      choices: ['zlib', 'zstd'],
      default: 'zlib',
      meaning: 'how compressed clusters are compressed',
    },
    {
      name: 'compat',
      kind: 'choice',
      choices: ['0.10', '1.1', 'v2', 'v3'],
      meaning: 'version of the format: 0.10 (v2) or 1.1 (v3, the default)',
    },
    {
      name: 'lazy_refcounts',
      kind: 'boolean',
      default: false,
      meaning: 'writers may put off refcounts; an image that was not closed is repaired when it is opened',
    },
    { name: 'refcount_bits', kind: 'number', default: 16, meaning: 'bits in a refcount: 1 to 64, a power of two' },
  ],
  sizeOf: (size) => alignUp(size, 512),
  create: (storage, { size, values, backing }) =>
    createQcow2(storage, {
      size,
      clusterSize: values.cluster_size as number,
      version: values.compat === '0.10' || values.compat === 'v2' ? 2 : 3,
      refcountBits: values.refcount_bits as number,
      lazyRefcounts: values.lazy_refcounts === true,
      compressionType: compressionType(values.compression_type),
      backingFile: backing?.reference,
      backingFormat: backing?.format,
    }),
};

function compressionType(value: unknown): 'zlib' | 'zstd' {
  if (value === 'zlib' || value === 'zstd') return value;
  throw new LunetteError('INVALID', `there is no compression type ${value}`);
}
