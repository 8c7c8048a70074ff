/**
 * Moves disks as a whole: convert, compare, checksum, measure. The library face: `import … from 'lunette/convert'`. The command line is built
 * on the same.
 */
export { type BenchOptions, type BenchResult, benchImage } from './bench.ts';
export { type ChecksumAlgorithm, type ChecksumOptions, checksumDisk } from './checksum.ts';
export { type CompareOptions, type CompareResult, compareDisks } from './compare.ts';
export { type ConvertOptions, type ConvertResult, convertImage } from './convert.ts';
export { concatenate, type DiskSource } from './disk.ts';
export { type Measure, type MeasureTarget, measureDisk } from './measure.ts';
export { convertOnto, type OntoOptions } from './onto.ts';
export type { ResumeOptions } from './resumption.ts';
export { convertToStream, type ToStreamOptions } from './to-stream.ts';
