/**
 * Takes images apart: what their snapshots cost, what differs between two of them, which files make a disk. The library face:
 * `import … from 'lunette/inspect'`. Nothing here changes an image.
 */
export { ALLOCATION_KINDS, type Allocation, type AllocationKind, MAP_CELLS, mapAllocation } from './allocation.ts';
export { renderAllocationSvg } from './allocation-picture.ts';
export { type ChainFile, describeFiles } from './chain.ts';
export { type DiffOptions, type DiffState, diffStates } from './diff.ts';
export { type InspectedFile, type InspectOptions, inspectFile, requireInternalSnapshots } from './inspect-file.ts';
export { findMachine, flatSnapshots, isSettings, type Machine, type MachineSnapshot } from './machine.ts';
export { OnlyDifferences } from './only-differences.ts';
export { type ChangeStrip, collectReport, type Report, type ReportOptions } from './report.ts';
export { renderAllocationPage, renderReport } from './report-page.ts';
export { fittingSnapshots, type SelectBy, selectSnapshot } from './select-snapshot.ts';
export { lookWhileStill } from './still.ts';
export { type ImageUsage, measureUsage } from './usage.ts';
