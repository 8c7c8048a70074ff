import { LunetteError } from '../core/errors.ts';
import { alignUp, KiB } from '../core/units.ts';
import type { FormatCreator } from '../driver.ts';
import { type CreateQcow2Options, checkCreateOptions, createQcow2 } from './create.ts';
import type { Preallocation } from './preallocate.ts';

/** New qcow2 images. Options have the names and defaults of qemu-img. */
export const qcow2Creator: FormatCreator = {
  format: 'qcow2',
  options: [
    { name: 'cluster_size', kind: 'size', default: 64 * KiB, meaning: 'bytes in a cluster: 512 to 2M, a power of two' },
    {
      name: 'extended_l2',
      kind: 'boolean',
      default: false,
      meaning: 'clusters have 32 parts that are allocated one by one: small writes over a backing file copy little',
    },
    {
      name: 'preallocation',
      kind: 'choice',
      choices: ['off', 'metadata', 'falloc', 'full'],
      meaning: 'what is made beforehand: nothing, the tables, the space as well, the space written with zeros',
    },
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
    { name: 'data_file', kind: 'string', meaning: 'a file of its own for the data, beside the image' },
    { name: 'data_file_raw', kind: 'boolean', meaning: 'the data file is the disk as a raw image at all times' },
    {
      name: 'lazy_refcounts',
      kind: 'boolean',
      default: false,
      meaning: 'writers may put off refcounts; an image that was not closed is repaired when it is opened',
    },
    { name: 'refcount_bits', kind: 'number', default: 16, meaning: 'bits in a refcount: 1 to 64, a power of two' },
  ],
  sizeOf: (size) => alignUp(size, 512),
  async create(storage, { size, values, backing, createFile }) {
    const dataFile = values.data_file as string | undefined;
    const options: CreateQcow2Options = {
      size,
      clusterSize: values.cluster_size as number,
      version: values.compat === '0.10' || values.compat === 'v2' ? 2 : 3,
      refcountBits: values.refcount_bits as number,
      lazyRefcounts: values.lazy_refcounts === true,
      compressionType: compressionType(values.compression_type),
      backingFile: backing?.reference,
      backingFormat: backing?.format,
      extendedL2: values.extended_l2 === true,
      preallocation: (values.preallocation ?? 'off') as Preallocation,
      dataFile,
      dataFileRaw: values.data_file_raw === true,
    };
    checkCreateOptions(options); // before a data file is emptied
    if (dataFile === undefined) return createQcow2(storage, options);
    const dataStorage = await createFile(dataFile);
    try {
      await createQcow2(storage, { ...options, dataStorage });
    } finally {
      await dataStorage.close();
    }
  },
};

function compressionType(value: unknown): 'zlib' | 'zstd' {
  if (value === 'zlib' || value === 'zstd') return value;
  throw new LunetteError('INVALID', `there is no compression type ${value}`);
}
