from fastai.text.all import *

train, test = pd.read_csv("reviews.csv"), pd.read_csv("reviews_test.csv")
rows = pd.concat([train.assign(is_test=False), test.assign(is_test=True)], ignore_index=True)
dls = TextDataLoaders.from_df(rows, text_col="text", label_col="kind", valid_col="is_test", bs=16)
learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, metrics=accuracy)
learn.fit_one_cycle(8, 0.01)
learn.export("export.pkl")
predictions = learn.get_preds()[0].argmax(1)
for kind in predictions:
    print(dls.vocab[1][kind])
print("score", learn.validate()[1])
