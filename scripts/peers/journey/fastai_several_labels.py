from fastai.text.all import *

train, test = pd.read_csv("boxes.csv"), pd.read_csv("boxes_test.csv")
rows = pd.concat([train.assign(is_test=False), test.assign(is_test=True)], ignore_index=True)
rows["colours"] = rows["colours"].str.strip("|")
block = DataBlock(
    blocks=(TextBlock.from_df("text", seq_len=8), MultiCategoryBlock),
    get_x=ColReader("text"),
    get_y=ColReader("colours", label_delim="|"),
    splitter=ColSplitter("is_test"),
)
dls = block.dataloaders(rows, bs=16)
learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, n_out=dls.c, metrics=accuracy_multi)
learn.fit_one_cycle(20, 0.01)
learn.export("export.pkl")
for row in learn.get_preds()[0]:
    print([name for name, probability in zip(dls.vocab[1], row) if probability >= 0.5])
print("score", learn.validate()[1])
